"""Audio files against soundfile and SciPy; damaged and absurd files are refused within bounded time and memory."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soundfile

from mmjax.errors import UserError
from mmjax.evaluation.predictor import input_warnings
from mmjax.modalities import MODALITIES
from mmjax.modalities.audio import Audio
from mmjax.modalities.filters import resample
from mmjax.modalities.recordings import MAX_CHANNELS, MAX_RATE, mono, read_recording
from mmjax.prepare.kinds import KINDS, File, Unreadable

NOISE = 0.4 * np.random.default_rng(0).normal(size=(500, 2)).clip(-2, 2)


def sound(samples: np.ndarray, form: str = "WAV", subtype: str = "PCM_16", rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def changed(data: bytes, at: int, form: str, value: int) -> bytes:
    field = struct.pack(form, value)
    return data[:at] + field + data[at + len(field) :]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_hold_what_soundfile_reads(form, subtype, channels):
    data = sound(NOISE[:, :channels], form, subtype, 11_025)
    samples, rate = read_recording(data, "a.wav")
    truth = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    assert rate == 11_025 and samples.shape == truth.shape
    found = samples / 2.0**15 if samples.dtype == np.int16 else samples
    np.testing.assert_allclose(found, truth, atol=1e-4 if subtype.endswith("LAW") else 0)


def test_wav_files_of_16_bits_hold_what_scipy_reads():
    data = sound(NOISE)
    rate, samples = scipy.io.wavfile.read(io.BytesIO(data))
    found = read_recording(data, "a.wav")
    assert found[1] == rate and found[0].dtype == np.int16
    np.testing.assert_array_equal(found[0], samples)


def test_a_stream_of_unknown_length_and_unknown_chunks_are_read():
    data = sound(NOISE)
    streamed = changed(changed(data, 4, "<I", 0xFFFFFFFF), data.index(b"data") + 4, "<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(read_recording(streamed, "a.wav")[0], read_recording(data, "a.wav")[0])
    at = data.index(b"data")
    extra = data[:at] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + data[at:]
    extra = changed(extra, 4, "<I", len(extra) - 8)
    np.testing.assert_array_equal(read_recording(extra, "a.wav")[0], read_recording(data, "a.wav")[0])


WAV = sound(NOISE)
ODD = {
    "rate": (changed(WAV, 24, "<I", 4294967168), "4294967168 Hz is not between 1 and 1000000"),
    "no rate": (changed(WAV, 24, "<I", 0), "0 Hz is not between"),
    "rate beyond": (changed(WAV, 24, "<I", MAX_RATE + 1), "1000001 Hz"),
    "channels": (changed(WAV, 22, "<H", 65535), "declares 65535 channels in 4 bytes"),
    "no channels": (changed(WAV, 22, "<H", 0), "declares 0 channels"),
    "step": (changed(WAV, 32, "<H", 0), "declares 2 channels in 0 bytes"),
    "data": (changed(WAV, WAV.index(b"data") + 4, "<I", 2**31), "cut short"),
    "cut": (WAV[:-900], "cut short"),
    "header": (WAV[:20], "cut short"),
    "no data": (changed(WAV[:36], 4, "<I", 28), "no samples"),
    "flac": (b"fLaC" + bytes(200), "unimplemented format"),
    "many": (sound(np.zeros((4, MAX_CHANNELS + 1)), subtype="PCM_16"), f"{MAX_CHANNELS + 1} channels"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_one_finding_and_one_line(name, tmp_path):
    data, said = ODD[name]
    with pytest.raises(Unreadable, match=said):
        KINDS["audio"]().decode(File("a.wav", data))
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as WAV") as error:
        Audio(Audio.Config()).read(str(tmp_path / "a.wav"), "--audio")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_pair_of_samples_and_an_absurd_rate_is_refused():
    for rate in (0, -5, 4294967168):
        with pytest.raises(Unreadable, match="Hz is not between"):
            KINDS["audio"]().decode((NOISE, rate))
        with pytest.raises(ValueError, match="Hz is not between"):
            Audio(Audio.Config()).process((NOISE, rate))


def test_a_sample_rate_of_1_does_not_exhaust_the_memory():
    """Declares 1 sample a second: 200 KB would be 28 hours, or 800 million samples at the rate used for comparison."""
    samples = (NOISE[:, 0].repeat(200) * 2**15).astype(np.int16)
    kind = KINDS["audio"]()
    assert kind.signature((samples, 1)) == kind.signature((samples[:600], 1))
    np.testing.assert_array_equal(kind.features((samples, 1)), kind.features((samples[:600], 1)))


@pytest.mark.parametrize("rate, target", [(44_100, 16_000), (8000, 48_000), (999_983, 44_101), (11_025, 16_000)])
def test_resampling_is_that_of_scipy_and_large_ratios_keep_the_tone(rate, target):
    count = rate // 10
    samples = np.sin(2 * np.pi * 440 * np.arange(count) / rate).astype(np.float32)
    found = resample(samples, rate, target)
    assert len(found) == -(-count * target // rate)
    inner = slice(len(found) // 4, -len(found) // 4)
    tone = np.sin(2 * np.pi * 440 * np.arange(len(found)) / target)
    np.testing.assert_allclose(found[inner], tone[inner], atol=2e-3)
    if rate < 50_000:
        truth = scipy.signal.resample_poly(samples.astype(np.float64), target, rate)
        np.testing.assert_allclose(found, truth, atol=1e-5)


def test_predict_warns_of_inputs_that_preparation_would_drop():
    modalities = {"clip": MODALITIES["video"](MODALITIES["video"].Config(rate=8.0)), "sound": None, "picture": None}
    kinds = {"clip": "video", "sound": "audio", "picture": "image"}
    moving = [np.full((9, 9), 30 * step, np.uint8) + np.arange(9, dtype=np.uint8) for step in range(5)]
    fine = {"clip": (moving, 10.0), "sound": (NOISE, 8000), "picture": np.arange(0, 250, 10, np.uint8).reshape(5, 5)}
    assert input_warnings(kinds, modalities, fine) == []
    bad = {"clip": (moving, 4.0), "sound": (0.3 + 0 * NOISE, 8000), "picture": np.full((5, 5, 3), 7, np.uint8)}
    told = input_warnings(kinds, modalities, bad)
    assert [line.partition(",")[0] for line in told] == [
        "--clip: frames repeat",
        "--sound: silent",
        "--picture: blank",
    ]
    assert "4 frames per second and the run samples 8" in told[0]


def test_mono_is_the_mean_of_the_channels():
    np.testing.assert_allclose(mono(NOISE), NOISE.mean(axis=1), atol=1e-7)
