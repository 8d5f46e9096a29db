"""Log-mel spectrograms in JAX: computed inside the step, on the accelerator, from the waveform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

FLOOR = 1e-5
"""Added to the energies before the logarithm; a silent frame gives log(FLOOR)."""


def mel_filters(bins: int, fft: int, sample_rate: int, low: float = 20.0) -> np.ndarray:
    """Triangular filters [fft // 2 + 1, bins], evenly spaced on O'Shaughnessy's mel scale (1987), with peaks of 1."""

    def to_mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (np.linspace(to_mel(low), to_mel(sample_rate / 2), bins + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, sample_rate / 2, fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(
    waveform: Float[Array, "batch samples"], *, sample_rate: int, bins: int, window: int, hop: int
) -> Float[Array, "batch frames bins"]:
    """Log of mel energies, float32, scaled to about zero mean and unit variance for speech.

    The Fourier transform is a matrix product with a windowed basis: exact, fast on matrix units, and free of gathers.

    Args:
      waveform: samples in [-1, 1].
      window, hop: samples of one frame (Hann window) and from one frame to the next.
    """
    x = waveform.astype(jnp.float32)
    frames = 1 + (x.shape[1] - window) // hop
    fft = 1 << (window - 1).bit_length()
    time = np.arange(window)
    angle = 2 * np.pi * np.outer(time, np.arange(fft // 2 + 1)) / fft
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * time / window))[:, None]
    basis = np.concatenate([hann * np.cos(angle), hann * np.sin(angle)], axis=1).astype(np.float32)
    # Framing as a convolution with the basis: no copy of the overlapping frames.
    spectrum = jax.lax.conv_general_dilated(
        x[:, :, None], jnp.asarray(basis[:, None, :]), (hop,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )[:, :frames]
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    power = (real * real + imaginary * imaginary) / window
    energies = power @ mel_filters(bins, fft, sample_rate)
    return (jnp.log(energies + FLOOR) + 5.0) / 4.0
