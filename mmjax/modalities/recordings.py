"""Audio file readers: WAV is built in; FLAC, OGG, MP3 and other formats of libsndfile need `soundfile`."""

from __future__ import annotations

import io
import re
import struct

import numpy as np

from mmjax.errors import UserError

Waveform = tuple[np.ndarray, int]
"""(samples [n] or [n, channels], sample rate in Hz)."""

MAX_RATE = 1_000_000
"""Maximum sample rate in Hz; hydrophones reach it. A header with more is damaged."""

MAX_CHANNELS = 256
"""Maximum number of channels; a header with more is damaged."""

MAX_VALUES = 2**27
"""Maximum number of samples x channels, 2.3 hours at 16 kHz: some bytes of a compressed file may expand to hours."""

_BLOCK = 2**20
# Format tags of WAV files.
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Size fields of streaming writers, which do not know the length in advance.
_UNKNOWN = (0, 0xFFFFFFF0)
# Encodings of libsndfile that keep more than 16 bits.
_WIDE = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")


def read_recording(data: bytes, name: str) -> Waveform:
    """Decodes an audio file to samples [n] or [n, channels] and its sample rate in Hz.

    Samples are int16 for 8-bit, 16-bit and lossy formats, which loses at most coding noise. They are float32 with full
    scale 1 for 24-bit, 32-bit and floating-point formats.

    Args:
      data: contents of the file.
      name: file name, for messages.

    Raises:
      ValueError: if the format is unsupported, or the file is damaged, truncated, empty or not finite.
      UserError: if it is not a PCM or floating-point WAV file, and the package `soundfile` is not installed.
    """
    samples, rate = _read_wav(data) if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else (None, 0)
    if samples is None:
        samples, rate = _read_with_soundfile(data, name)
    check_rate(rate)
    mono(samples)
    return samples, rate


def check_rate(rate: int) -> None:
    """Raises ValueError if a sample rate in Hz is not in [1, MAX_RATE]."""
    if not 1 <= rate <= MAX_RATE:
        raise ValueError(f"a sample rate of {rate} Hz is not between 1 and {MAX_RATE}")


def mono(samples: np.ndarray) -> np.ndarray:
    """Averages the channels: int16 or floating point [n] or [n, channels] to float32 [n].

    Raises:
      ValueError: if the samples are empty or not finite, or have an unsupported shape or dtype.
    """
    if samples.ndim not in (1, 2) or not (samples.dtype == np.int16 or samples.dtype.kind == "f"):
        raise ValueError(f"audio must be int16 or float [n] or [n, C], not {samples.dtype} {list(samples.shape)}")
    if samples.size == 0:
        raise ValueError("the audio has no samples")
    if samples.ndim == 2 and samples.shape[1] > MAX_CHANNELS:
        raise ValueError(f"the audio has {samples.shape[1]} channels, more than {MAX_CHANNELS}")
    _check_length(samples.size)
    values = samples.astype(np.float32)
    if samples.dtype == np.int16:
        values /= 32768
    if values.ndim == 2:
        values = values.mean(axis=1)
    if samples.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("the audio has samples that are not finite")
    return values


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Rounds float samples to int16. A recording beyond full scale is scaled down as a whole."""
    if samples.dtype == np.int16:
        return samples
    return _quantise(samples, float(np.abs(samples).max()))


def _quantise(samples: np.ndarray, peak: float) -> np.ndarray:
    return np.rint(samples / max(1.0, peak) * 32767).astype(np.int16)


def _check_length(count: int) -> None:
    if count > MAX_VALUES:
        raise ValueError(f"longer than {MAX_VALUES:,} samples x channels; cut the recording into parts")


def _read_wav(data: bytes) -> tuple[np.ndarray | None, int]:
    """Parses a WAV file; (None, 0) if its encoding is neither PCM nor floating point."""
    declared = struct.unpack("<I", data[4:8])[0]
    streamed = declared == _UNKNOWN[0] or declared >= _UNKNOWN[1]
    # Some writers do not count the padding byte.
    if not streamed and len(data) < declared + 7:
        raise ValueError(f"cut short: {len(data):,} of {declared + 8:,} bytes")
    form, position = b"", 12
    while position + 8 <= len(data):
        tag, size = struct.unpack("<4sI", data[position : position + 8])
        position += 8
        if tag == b"fmt ":
            form = data[position : position + size]
        elif tag == b"data":
            available = len(data) - position
            if streamed and (size == _UNKNOWN[0] or size >= _UNKNOWN[1]):
                size = available
            if size > available:
                raise ValueError(f"cut short: {available:,} of {size:,} bytes of samples")
            return _decode_wav(form, memoryview(data)[position : position + size])
        position += size + size % 2
    raise ValueError("the WAV file has no samples")


def _decode_wav(form: bytes, body: memoryview) -> tuple[np.ndarray | None, int]:
    """Decodes the chunk `data` of a WAV file according to its chunk `fmt `."""
    if len(form) < 16:
        raise ValueError("the WAV file does not name its format")
    encoding, channels, rate, _, step, _ = struct.unpack("<HHIIHH", form[:16])
    if encoding == _EXTENSIBLE and len(form) >= 26:
        encoding = struct.unpack("<H", form[24:26])[0]
    if encoding not in (_PCM, _FLOAT):
        return None, 0
    width = step // channels if channels and step % channels == 0 else 0
    if width not in ((1, 2, 3, 4) if encoding == _PCM else (4, 8)):
        raise ValueError(f"the WAV header declares {channels} channels in {step} bytes")
    body = body[: len(body) // step * step]
    _check_length(len(body) // width)
    samples: np.ndarray
    if encoding == _FLOAT:
        with np.errstate(over="ignore"):
            samples = np.frombuffer(body, f"<f{width}").astype(np.float32)
    elif width == 1:
        samples = (np.frombuffer(body, np.uint8).astype(np.int16) - 128) * 256
    elif width == 2:
        samples = np.frombuffer(body, "<i2").astype(np.int16)
    else:
        # Left-justify 24 bits in 32.
        wide = np.zeros((len(body) // width, 4), np.uint8)
        wide[:, 4 - width :] = np.frombuffer(body, np.uint8).reshape(-1, width)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    return (samples if channels == 1 else samples.reshape(-1, channels)), rate


def _read_with_soundfile(data: bytes, name: str) -> Waveform:
    try:
        import soundfile
    except (ImportError, OSError):
        raise UserError("audio", f"{name!r} needs the package soundfile", "pip install 'mmjax[data]'") from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as opened:
            narrow, frames, rate = opened.subtype in ("PCM_16", "PCM_S8", "PCM_U8"), opened.frames, opened.samplerate
            if opened.channels > MAX_CHANNELS:
                raise ValueError(f"the audio has {opened.channels} channels, more than {MAX_CHANNELS}")
            # Read block by block, because the header may declare more samples than fit into memory.
            blocks = [opened.read(_BLOCK, dtype="int16" if narrow else "float32")]
            while len(blocks[-1]):
                _check_length(sum(block.size for block in blocks))
                blocks.append(opened.read(_BLOCK, dtype="int16" if narrow else "float32"))
            if not narrow and opened.subtype not in _WIDE and all(np.isfinite(block).all() for block in blocks):
                peak = max(float(np.abs(block).max(initial=0)) for block in blocks)
                blocks = [_quantise(block, peak) for block in blocks]
            samples = np.concatenate(blocks)
    # soundfile raises its own errors, RuntimeError, and MemoryError for absurd sizes in the header.
    except Exception as error:
        raise ValueError(re.sub(r"Error opening <.*?>: ", "", str(error))) from None
    if len(samples) < frames:
        raise ValueError(f"cut short: {len(samples):,} of {frames:,} samples")
    return samples, int(rate)
