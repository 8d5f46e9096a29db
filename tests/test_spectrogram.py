"""Spectrograms: log-mel energies against a float64 Fourier transform, normalisation and masking."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.config import build
from mmjax.data.buffer_pool import BufferPool
from mmjax.data.rows import PackedRows, PaddedRows
from mmjax.encoders.spectrogram_transformer import STRIDES, SpectrogramTransformer
from mmjax.errors import UserError
from mmjax.layers import Precision, Randomness
from mmjax.layers.spectrogram import ENERGY_FLOOR, Spectrogram, SpectrogramConfig, log_mel, mel_filters
from mmjax.modalities import Audio
from mmjax.tokens import Input, InputSpec

RATE, WINDOW, HOP, BINS = 8000, 200, 80, 20
SPEC = InputSpec((4000,), "float32", mask_rank=1, details={"sample_rate": RATE})


def waveform(samples: int = 4000, examples: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (examples, samples)).astype(np.float32)


def spectrogram(**options) -> Spectrogram:
    return Spectrogram(build(SpectrogramConfig, {"bins": BINS, **options}, "audio"), SPEC)


def frames_of(samples: np.ndarray, lengths: list[int], rng: Randomness | None = None, **options):
    mask = np.arange(samples.shape[1]) < np.array(lengths)[:, None]
    frames, real = spectrogram(**options)(Input(jnp.asarray(samples * mask), jnp.asarray(mask)), rng)
    return np.asarray(frames), np.asarray(real)


def test_energies_are_those_of_a_fourier_transform_in_float64():
    samples = waveform()
    found = log_mel(jnp.asarray(samples), sample_rate=RATE, bins=BINS, window=WINDOW, hop=HOP)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    starts = range(0, samples.shape[1] - WINDOW + 1, HOP)
    pieces = np.stack([samples[:, start : start + WINDOW] for start in starts], axis=1).astype(np.float64)
    power = np.abs(np.fft.rfft(pieces * hann, 256)) ** 2 / WINDOW
    expected = (np.log(power @ mel_filters(BINS, 256, RATE) + ENERGY_FLOOR) + 5) / 4
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_tone_is_loudest_in_the_bin_around_it():
    filters = mel_filters(BINS, 256, RATE)
    samples = np.sin(2 * np.pi * 1000 * np.arange(4000) / RATE)[None].astype(np.float32)
    found = log_mel(jnp.asarray(samples), sample_rate=RATE, bins=BINS, window=WINDOW, hop=HOP)
    assert int(found[0].mean(axis=0).argmax()) == int(filters[round(1000 / RATE * 256)].argmax())


def test_normalisation_removes_loudness_and_the_response_of_a_microphone():
    samples, lengths = waveform(), [4000, 2400]
    frames, real = frames_of(samples, lengths, normalise="recording")
    means = (frames * real[:, :, None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(means, 0, atol=1e-5)
    assert np.all(frames[1][~real[1]] == 0) and real[1].sum() == 30
    louder, _ = frames_of(3 * samples, lengths, normalise="recording")
    np.testing.assert_allclose(louder, frames, atol=0.02)  # except for the floor
    assert np.abs(frames_of(3 * samples, lengths)[0] - frames_of(samples, lengths)[0]).max() > 0.4


def test_masks_hide_bands_and_stretches_in_training_only():
    samples, examples = waveform(examples=400), 400
    rng = Randomness.make(0, jnp.zeros((), jnp.int32), jnp.arange(examples))
    options = {"normalise": "none", "frequency_mask": 6, "time_mask_ms": 100.0}
    plain, _ = frames_of(samples, [4000] * examples, **options)
    np.testing.assert_array_equal(plain, frames_of(samples, [4000] * examples)[0])
    masked, _ = frames_of(samples, [4000] * examples, rng, **options)
    hidden = masked == 0
    assert np.array_equal(masked[~hidden], plain[~hidden])
    bands, stretches = hidden.all(axis=1), hidden.all(axis=2)
    # Masks hide whole bands and whole time spans.
    np.testing.assert_array_equal(hidden, bands[:, None, :] | stretches[:, :, None])
    # Two uniform spans rarely overlap: the mean is slightly below the bound.
    assert bands.sum(axis=1).max() <= 12 and 4.5 < bands.sum(axis=1).mean() < 6
    assert stretches.sum(axis=1).max() <= 20 and 8 < stretches.sum(axis=1).mean() < 10
    # All bins and frames are hidden about equally often, except at the edges.
    assert bands.mean(axis=0)[4:-4].std() < 0.1 * bands.mean(axis=0)[4:-4].mean() + 0.03


@pytest.mark.parametrize("seconds", [0.3, 0.31, 0.33])
@pytest.mark.parametrize("reduction", STRIDES)
def test_packed_recordings_match_the_same_recordings_alone(reduction, seconds):
    """Recordings of all lengths, in training too, for every stride of the first convolutions."""
    chunk, draws = HOP * reduction, np.random.default_rng(0)
    audio = Audio(Audio.Config(sample_rate=RATE, seconds=seconds, chunk=chunk))
    options = {"bins": BINS, "reduction": reduction, "width": 16, "depth": 1, "heads": 2}
    # The longest is truncated; others end inside a chunk, at a chunk's end, or before one window is full.
    lengths = [2900, chunk + 3, 2 * chunk, 30, 13 * HOP, 1500]
    raws = [(draws.normal(0, 0.1, length).astype(np.float32), RATE) for length in lengths]
    padded_rows = PaddedRows({"sound": audio}, len(raws), BufferPool())
    spec, planned_lengths = audio.packed_spec(120), {"sound": audio.lengths({"seconds": np.array(lengths) / RATE}, 120)}
    packed_rows = PackedRows({"sound": audio}, {"sound": spec}, planned_lengths, len(raws), BufferPool(), slots=3)
    for number, raw in enumerate(raws):
        for rows in (padded_rows, packed_rows):
            rows.put("sound", number, number, raw)
    rng = Randomness.make(0, jnp.zeros((), jnp.int32), jnp.arange(len(raws)))
    for extra in ({}, {"normalise": "recording", "frequency_mask": 6, "time_mask_ms": 100.0, "dropout": 0.2}):
        config = build(SpectrogramTransformer.Config, {**options, **extra}, "audio")
        found = []
        for rows, form in ((padded_rows, audio.spec), (packed_rows, spec)):
            made = SpectrogramTransformer(config, form, precision=Precision(), rngs=nnx.Rngs(0))
            with jax.default_matmul_precision("highest"):
                tokens = jax.jit(made)(jax.tree.map(jnp.asarray, rows.inputs["sound"]), rng)
            members = np.asarray(tokens.members).reshape(len(raws), -1)
            values = np.repeat(np.asarray(tokens.values), tokens.slots, axis=0)
            found.append([vectors[own] for vectors, own in zip(values, members, strict=True)])
        for number, (one, other) in enumerate(zip(*found, strict=True)):
            np.testing.assert_allclose(other, one, atol=1e-4, err_msg=f"recording {number}")


def test_a_chunk_that_is_no_token_of_the_encoder_is_refused():
    spec = Audio(Audio.Config(sample_rate=RATE, seconds=0.5, chunk=320)).packed_spec(20)
    config = build(SpectrogramTransformer.Config, {"width": 16, "depth": 1, "heads": 2, "reduction": 6}, "audio")
    with pytest.raises(ValueError, match="chunk 320 .* differs from the 480 samples of a token; set chunk = 480"):
        SpectrogramTransformer(config, spec, precision=Precision(), rngs=nnx.Rngs(0))


def test_a_mask_wider_than_the_spectrogram_is_refused():
    with pytest.raises(UserError, match="frequency_mask 21 exceeds the 20 bins; make it smaller"):
        spectrogram(frequency_mask=21)
