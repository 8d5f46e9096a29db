"""Reproducible speech synthesis with espeak-ng: bit-identical output in every run.

espeak-ng seeds its random numbers from the clock and keeps state between utterances, so the same word varies from call
to call. With a fixed seed, the same sequence of calls in a fresh process returns the same samples. `synthesise`
therefore splits a list of utterances into chunks of a fixed length and runs each chunk in a fresh process. Chunks run
in parallel; the number of parallel processes does not affect the output.

The package `espeakng-loader` (extra `demo`) provides the library and its voices. It is GPL-3, so mmjax runs it in a
separate process and does not require it.
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
# Changing either of these changes the samples.
_UTTERANCES_PER_PROCESS = 3000
_SEED = 1
# Sent instead of a sample count if the voice does not exist.
_UNKNOWN_VOICE = -1


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Text and voice parameters of one utterance.

    Attributes:
      text: words to speak.
      voice: espeak-ng language, optionally "+" and a variant, such as "en-us+f3".
      speed: words per minute, 80 to 450.
      pitch: 0 to 99; 50 is the default of the voice.
    """

    text: str
    voice: str = "en-us"
    speed: int = 175
    pitch: int = 50


def synthesise(
    utterances: Sequence[Utterance], advance: Callable[[int], None] = lambda count: None
) -> list[np.ndarray]:
    """Synthesises a list of utterances.

    Args:
      utterances: texts and voices. The output depends only on the whole list, including its order.
      advance: progress callback, called from several threads with the number of utterances since its last call.

    Returns:
      For each utterance int16 samples [n] at 16 kHz, trimmed of leading and trailing silence.

    Raises:
      UserError: if espeakng-loader is not installed or a voice does not exist.
    """
    known = variants()
    for voice in sorted({utterance.voice for utterance in utterances}):
        check_variant(voice, known)
    size = _UTTERANCES_PER_PROCESS
    chunks = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=visible_cores()) as pool:
        waveforms = pool.map(lambda chunk: _synthesise_in_process(chunk, advance), chunks)
        return [samples for chunk in waveforms for samples in chunk]


def check_installed() -> None:
    """Raises UserError if espeakng-loader is not installed."""
    _data_folder()


def variants() -> list[str]:
    """Returns the names of espeak-ng's voice variants."""
    return sorted(path.name for path in (_data_folder() / "voices" / "!v").iterdir())


def check_variant(voice: str, known: Sequence[str]) -> None:
    """Raises UserError for an unknown variant, for which espeak-ng silently falls back to the base voice."""
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


def _synthesise_in_process(utterances: Sequence[Utterance], advance: Callable[[int], None]) -> list[np.ndarray]:
    """Runs `_serve` in a fresh process and collects its waveforms."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        # Run the file as a script: as a package module it would import JAX. -P keeps its folder off sys.path.
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # One thread per process: the chunks already fill the cores.
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    waveforms: list[np.ndarray] = []
    try:
        process.stdin.write(json.dumps([dataclasses.astuple(utterance) for utterance in utterances]).encode())
        process.stdin.close()
        while len(header := process.stdout.read(4)) == 4:
            count = struct.unpack("<i", header)[0]
            if count == _UNKNOWN_VOICE:
                voice = utterances[len(waveforms)].voice
                raise UserError("voice", f"espeak-ng has no voice {voice!r}", "use another, for example 'en-us'")
            waveforms.append(np.frombuffer(process.stdout.read(2 * count), "<i2").astype(np.int16))
            if len(waveforms) % 64 == 0:
                advance(64)
    finally:
        process.stdout.close()
        process.wait()
    if process.returncode or len(waveforms) != len(utterances):
        raise RuntimeError(f"the speech process exited with {process.returncode} after {len(waveforms)} utterances")
    advance(len(waveforms) % 64)
    return waveforms


def _serve() -> None:
    """Child process: reads utterances as JSON from stdin, writes (int32 count, int16 samples) to stdout."""
    # Redirect prints of libraries to stderr, so that stdout carries only waveforms.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    espeak = _Espeak()
    for fields in json.load(sys.stdin):
        raw = espeak.synthesise(Utterance(*fields))
        if raw is None:
            output.write(struct.pack("<i", _UNKNOWN_VOICE))
            break
        samples = _resample_and_trim(raw)
        output.write(struct.pack("<i", len(samples)) + samples.astype("<i2").tobytes())
    output.close()


def _resample_and_trim(samples: np.ndarray) -> np.ndarray:
    """Resamples int16 [n] from 22,050 to 16,000 Hz at half amplitude, and trims both ends below -45 dB of the peak."""
    import scipy.signal

    # Halve before filtering: where espeak-ng clips, the overshoot of the filter would exceed int16.
    waveform = scipy.signal.resample_poly(samples.astype(np.float64) / 2, 320, 441, window=_low_pass())
    level = np.abs(waveform)
    loud = np.flatnonzero(level > level.max(initial=0) * 10 ** (-45 / 20))
    if not len(loud):
        raise RuntimeError("espeak-ng returned silence")
    return np.rint(waveform[loud[0] : loud[-1] + 1]).astype(np.int16)


@functools.cache
def _low_pass() -> np.ndarray:
    """Filter of `resample_poly`, cached because designing it takes longer than applying it."""
    import scipy.signal

    return scipy.signal.firwin(20 * 441 + 1, 1 / 441, window=("kaiser", 5.0))


class _Espeak:
    """Minimal ctypes binding of espeak-ng; constants are from speak_lib.h."""

    _CHARACTERS_UTF8, _RATE, _PITCH = 1, 1, 3

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._samples = array.array("h")
        # Keep a reference: ctypes frees an unreferenced callback, and the library would then call freed memory.
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = prototype(self._receive)
        data = espeakng_loader.get_data_path().encode()
        rate = self._library.espeak_Initialize(2, 0, data, 0)  # 2: synchronous, samples go to the callback.
        if rate != _ESPEAK_RATE:
            raise RuntimeError(f"espeak-ng has a sample rate of {rate} Hz, expected {_ESPEAK_RATE}")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ng_SetRandSeed(_SEED)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._samples.frombytes(ctypes.string_at(samples, 2 * count))
        return 0

    def synthesise(self, utterance: Utterance) -> np.ndarray | None:
        """Returns int16 samples [n] at 22,050 Hz with surrounding silence; None if the voice does not exist."""
        del self._samples[:]
        if self._library.espeak_SetVoiceByName(utterance.voice.encode()):
            return None
        self._library.espeak_SetParameter(self._RATE, utterance.speed, 0)
        self._library.espeak_SetParameter(self._PITCH, utterance.pitch, 0)
        text = utterance.text.encode()
        if self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, self._CHARACTERS_UTF8, None, None):
            raise RuntimeError(f"espeak-ng cannot synthesise {utterance.text!r}")
        self._library.espeak_Synchronize()
        return np.frombuffer(self._samples, np.int16).copy()


if __name__ == "__main__":
    _serve()
