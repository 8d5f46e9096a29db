"""Normalisation that no other example can influence; statistics are float32 whatever the input is."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from mmjax.sharding import parameter

EPSILON = 1e-6


class LayerNorm(nnx.Module):
    """Layer Normalization (Ba et al., 2016) over the last dimension."""

    def __init__(self, width: int):
        self.scale = parameter(jnp.ones(width), "none")
        self.bias = parameter(jnp.zeros(width), "none")

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return _normalise(x, self.scale[...], self.bias[...])


# The backward pass normalises again: what the derivative is made of is twice as large as `x`, more in bfloat16.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPSILON)
    return (y * scale + bias).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group Normalization (Wu and He, 2018) over space and groups of channels; the channels come last."""

    def __init__(self, channels: int, groups: int = 8):
        while channels % groups:
            groups -= 1
        self.groups = groups
        self.scale = parameter(jnp.ones(channels), "none")
        self.bias = parameter(jnp.zeros(channels), "none")

    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space channels"]:
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        y = y - self._means(y)
        y = y * lax.rsqrt(self._means(y * y) + EPSILON)
        return (y * self.scale[...] + self.bias[...]).reshape(x.shape).astype(x.dtype)

    def _means(self, y: Float[Array, "batch cells channels"]) -> Float[Array, "batch 1 channels"]:
        """Over each channel's group. Space first: groups of a few channels would leave vector units half empty."""
        means = y.mean(axis=1).reshape(y.shape[0], self.groups, -1).mean(axis=-1)
        return jnp.repeat(means, y.shape[-1] // self.groups, axis=-1)[:, None]
