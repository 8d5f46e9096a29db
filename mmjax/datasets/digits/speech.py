"""Spoken words from espeak-ng, equal bit for bit each time.

espeak-ng seeds its random numbers by the clock, and keeps state from one utterance to the next, so that the same word
sounds slightly different each time. With a seed of ours, the same sequence of calls in a fresh process gives the same
samples: `synthesise` cuts a list of utterances into parts of a fixed length, and says each part in a process of its
own. Parts run beside each other; how many at once does not change them.

The package `espeakng-loader` (extra `demo`) brings the library and its voices. It is GPL-3, which is why mmjax runs it
in a process of its own and does not require it.
"""

from __future__ import annotations

import array
import concurrent.futures
import ctypes
import dataclasses
import functools
import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.host.cores import visible_cores

RATE = 16_000
_ESPEAK_RATE = 22_050
# These two are part of what defines the output: another number gives other samples.
_UTTERANCES_IN_A_PROCESS = 3000
_SEED = 1
# Stands where the number of samples would: the voice does not exist.
_REFUSED = -1


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What to say and how.

    Attributes:
      text: the words.
      voice: a language of espeak-ng, and after "+" one of its variants: "en-us+f3".
      speed: in words a minute, 80 to 450.
      pitch: 0 to 99; 50 is the voice's own.
    """

    text: str
    voice: str = "en-us"
    speed: int = 175
    pitch: int = 50


def synthesise(
    utterances: Sequence[Utterance], advance: Callable[[int], None] = lambda count: None
) -> list[np.ndarray]:
    """Says the utterances.

    Args:
      utterances: what to say. The result depends on all of them and their order, and on nothing else.
      advance: is called, from several threads, with the number of utterances finished since the last call.

    Returns:
      For each, int16 samples at 16 kHz, without the silence before and after.

    Raises:
      UserError: if espeakng-loader is not installed or a voice does not exist.
    """
    known = variants()
    for voice in sorted({utterance.voice for utterance in utterances}):
        check_variant(voice, known)
    size = _UTTERANCES_IN_A_PROCESS
    parts = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=visible_cores()) as pool:
        spoken = pool.map(lambda part: _speak_in_a_process(part, advance), parts)
        return [samples for part in spoken for samples in part]


def check_installed() -> None:
    """Raises UserError if espeakng-loader is not installed."""
    _data_folder()


def variants() -> list[str]:
    """The names of all of espeak-ng's voice variants."""
    return sorted(path.name for path in (_data_folder() / "voices" / "!v").iterdir())


def check_variant(voice: str, known: Sequence[str]) -> None:
    """Raises UserError unless the variant exists: espeak-ng speaks with the plain voice instead, without a word."""
    _, plus, variant = voice.partition("+")
    if plus and variant not in known:
        raise UserError("voice", f"espeak-ng has no variant {variant!r}", nearest(variant, known))


def _data_folder() -> pathlib.Path:
    try:
        import espeakng_loader
    except ImportError:
        remedy = "pip install 'mmjax[demo]'"
        raise UserError("data", "speech synthesis needs the package espeakng-loader", remedy) from None
    return pathlib.Path(espeakng_loader.get_data_path())


def _speak_in_a_process(utterances: Sequence[Utterance], advance: Callable[[int], None]) -> list[np.ndarray]:
    """Runs `_serve` in a fresh process and collects what it says."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        # This file by itself: as part of its package it would import JAX first. -P: its folder is not for imports.
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # One thread each: the parts already fill the cores.
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    spoken: list[np.ndarray] = []
    try:
        process.stdin.write(json.dumps([dataclasses.astuple(utterance) for utterance in utterances]).encode())
        process.stdin.close()
        while len(header := process.stdout.read(4)) == 4:
            count = struct.unpack("<i", header)[0]
            if count == _REFUSED:
                voice = utterances[len(spoken)].voice
                raise UserError("voice", f"espeak-ng refuses the voice {voice!r}", "give another, for example 'en-us'")
            spoken.append(np.frombuffer(process.stdout.read(2 * count), "<i2").astype(np.int16))
            if len(spoken) % 64 == 0:
                advance(64)
    finally:
        process.stdout.close()
        process.wait()
    if process.returncode or len(spoken) != len(utterances):
        raise RuntimeError(f"the speech process ended with {process.returncode} after {len(spoken)} utterances")
    advance(len(spoken) % 64)
    return spoken


def _serve() -> None:
    """The other process: reads utterances from standard input, writes waveforms to standard output."""
    # Whatever a library prints must not get between the waveforms.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    espeak = _Espeak()
    for fields in json.load(sys.stdin):
        spoken = espeak.say(Utterance(*fields))
        if spoken is None:
            output.write(struct.pack("<i", _REFUSED))
            break
        samples = _clean(spoken)
        output.write(struct.pack("<i", len(samples)) + samples.astype("<i2").tobytes())
    output.close()


def _clean(samples: np.ndarray) -> np.ndarray:
    """Resamples int16 from 22,050 to 16,000 Hz, and cuts what is 45 dB below the peak from both ends."""
    import scipy.signal

    # Halved before the filter, whose overshoot would not fit int16 where espeak-ng itself clips.
    waveform = scipy.signal.resample_poly(samples.astype(np.float64) / 2, 320, 441, window=_low_pass())
    level = np.abs(waveform)
    loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (-45 / 20))
    if not len(loud):
        raise RuntimeError("espeak-ng gave silence")
    return np.rint(waveform[loud[0] : loud[-1] + 1]).astype(np.int16)


@functools.cache
def _low_pass() -> np.ndarray:
    """The filter that `resample_poly` would design anew in each call, which takes longer than to apply it."""
    import scipy.signal

    return scipy.signal.firwin(20 * 441 + 1, 1 / 441, window=("kaiser", 5.0))


class _Espeak:
    """The library's few functions that we need, through ctypes; speak_lib.h names the numbers."""

    _CHARACTERS_UTF8, _RATE, _PITCH = 1, 1, 3

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._samples = array.array("h")
        # Kept as a member: ctypes frees a callback that nothing refers to, and the library would call freed memory.
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)
        data = espeakng_loader.get_data_path().encode()
        rate = self._library.espeak_Initialize(2, 0, data, 0)  # 2: deliver samples to the callback, synchronously.
        if rate != _ESPEAK_RATE:
            raise RuntimeError(f"espeak-ng starts with a rate of {rate} Hz, not {_ESPEAK_RATE}")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ng_SetRandSeed(_SEED)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._samples.frombytes(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, utterance: Utterance) -> np.ndarray | None:
        """int16 samples [n] at 22,050 Hz, with silence around them; None if there is no such voice."""
        del self._samples[:]
        if self._library.espeak_SetVoiceByName(utterance.voice.encode()):
            return None
        self._library.espeak_SetParameter(self._RATE, utterance.speed, 0)
        self._library.espeak_SetParameter(self._PITCH, utterance.pitch, 0)
        text = utterance.text.encode()
        if self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, self._CHARACTERS_UTF8, None, None):
            raise RuntimeError(f"espeak-ng cannot say {utterance.text!r}")
        self._library.espeak_Synchronize()
        return np.frombuffer(self._samples, np.int16).copy()


if __name__ == "__main__":
    _serve()
