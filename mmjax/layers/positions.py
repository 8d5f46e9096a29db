"""Positional embeddings."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def sincos_positions(
    positions: Float[Array, "batch tokens axes"], width: int, max_period: float = 10_000.0
) -> Float[Array, "batch tokens width"]:
    """Sine-cosine embedding of positions with any number of axes (Vaswani et al., 2017; He et al., MAE, 2022).

    Each axis gets an equal share of the width, with wavelengths from 2 pi to 2 pi `max_period`; remaining features are
    0. Works for packed tokens, since their positions restart in each segment.
    """
    axes = positions.shape[-1]
    pairs = width // (2 * axes)
    frequencies = max_period ** (-jnp.arange(pairs, dtype=jnp.float32) / max(pairs, 1))
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    waves = waves.reshape(*positions.shape[:-1], axes * pairs * 2)
    return jnp.pad(waves, ((0, 0), (0, 0), (0, width - waves.shape[-1])))
