"""Normalisation that no other example can influence; statistics are float32 whatever the input is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmjax.layers.linear import PRODUCT
from mmjax.sharding import parameter

EPSILON = 1e-6


class LayerNorm(nnx.Module):
    """Layer Normalization (Ba et al., 2016) over the last dimension."""

    def __init__(self, width: int):
        self.scale = parameter(jnp.ones(width), "none")
        self.bias = parameter(jnp.zeros(width), "none")

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return _normalise(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """The backward pass normalises again from two numbers a row: JAX's own would keep arrays twice as large as `x`."""
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    mean, inverse = (checkpoint_name(each, PRODUCT) for each in _statistics(x))
    return (_standard(x, mean, inverse) * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _normalise_backward(saved, gradient):
    x, mean, inverse, scale = saved
    y, dy = _standard(x, mean, inverse), gradient.astype(jnp.float32)
    slope, rows = dy * scale, tuple(range(x.ndim - 1))
    slope = slope - slope.mean(axis=-1, keepdims=True) - y * (slope * y).mean(axis=-1, keepdims=True)
    return (slope * inverse[..., None]).astype(x.dtype), (dy * y).sum(rows), dy.sum(rows)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and inverse standard deviation of each row, float32."""
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1)
    if x.dtype == jnp.float32:
        variance = jnp.square(y - mean[..., None]).mean(axis=-1)
    else:
        # Both sums in one pass, which the product before can make on its way. What float32 loses in the difference is
        # less than what the input lost to its own rounding.
        variance = jnp.maximum(jnp.square(y).mean(axis=-1) - jnp.square(mean), 0)
    return mean, lax.rsqrt(variance + EPSILON)


def _standard(x: jax.Array, mean: jax.Array, inverse: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - mean[..., None]) * inverse[..., None]


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
