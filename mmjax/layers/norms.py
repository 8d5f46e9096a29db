"""LayerNorm and GroupNorm. Statistics are per example and float32 for any input dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mmjax.layers.linear import PRODUCT
from mmjax.sharding import parameter

EPSILON = 1e-6
"""Added to the variance."""


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., Layer Normalization, 2016) over the last axis."""

    def __init__(self, width: int):
        self.scale = parameter(jnp.ones(width), "none")
        self.bias = parameter(jnp.zeros(width), "none")

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalises, scales and shifts `x`, in its dtype."""
        return _normalise(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def _normalise(x: Float[Array, "... width"], scale: jax.Array, bias: jax.Array) -> Float[Array, "... width"]:
    """Layer normalisation whose backward pass recomputes the normalised values from the mean and variance per row.

    JAX's own derivative would save arrays of twice the size of `x`.
    """
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    mean, inverse_std = (checkpoint_name(statistic, PRODUCT) for statistic in _statistics(x))
    return (_standardise(x, mean, inverse_std) * scale + bias).astype(x.dtype), (x, mean, inverse_std, scale)


def _normalise_backward(saved, cotangent):
    x, mean, inverse_std, scale = saved
    y, dy = _standardise(x, mean, inverse_std), cotangent.astype(jnp.float32)
    dz, leading_axes = dy * scale, tuple(range(x.ndim - 1))
    dx = dz - dz.mean(axis=-1, keepdims=True) - y * (dz * y).mean(axis=-1, keepdims=True)
    return (dx * inverse_std[..., None]).astype(x.dtype), (dy * y).sum(leading_axes), dy.sum(leading_axes)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def _statistics(x: Float[Array, "*rows width"]) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    """Mean and inverse standard deviation over the last axis, float32."""
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1)
    if x.dtype == jnp.float32:
        variance = jnp.square(y - mean[..., None]).mean(axis=-1)
    else:
        # E[x^2] - E[x]^2 needs one pass, which XLA can fuse into the preceding matmul. Its cancellation error, in
        # float32, is below the rounding error of the lower-precision input.
        variance = jnp.maximum(jnp.square(y).mean(axis=-1) - jnp.square(mean), 0)
    return mean, lax.rsqrt(variance + EPSILON)


def _standardise(x: Float[Array, "*rows width"], mean: jax.Array, inverse_std: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - mean[..., None]) * inverse_std[..., None]


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He, Group Normalization, 2018) over space and groups of channels.

    Args:
      channels: number of channels, the last axis.
      groups: maximum number of groups, reduced to the next divisor of `channels`.
    """

    def __init__(self, channels: int, groups: int = 8):
        while channels % groups:
            groups -= 1
        self.groups = groups
        self.scale = parameter(jnp.ones(channels), "none")
        self.bias = parameter(jnp.zeros(channels), "none")

    def __call__(
        self, x: Float[Array, "batch *space channels"], mask: Bool[Array, "batch steps"] | None = None
    ) -> Float[Array, "batch *space channels"]:
        """Normalises, scales and shifts `x`, in its dtype.

        Args:
          x: features.
          mask: valid steps of the first spatial axis. Statistics are over these only, and all other steps become 0,
            so the result does not depend on the length of the padding.
        """
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        valid, count = None, None
        if mask is not None:
            cells = jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (x.ndim - 3)), x.shape[:-1])
            valid = cells.reshape(x.shape[0], -1, 1)
            count = jnp.maximum(valid.sum(axis=1, dtype=jnp.float32), 1.0)
            y = jnp.where(valid, y, 0.0)
        y = y - self._group_mean(y, count)
        if valid is not None:
            y = jnp.where(valid, y, 0.0)
        y = y * lax.rsqrt(self._group_mean(y * y, count) + EPSILON)
        y = y * self.scale[...] + self.bias[...]
        if valid is not None:
            y = jnp.where(valid, y, 0.0)
        return y.reshape(x.shape).astype(x.dtype)

    def _group_mean(
        self, y: Float[Array, "batch cells channels"], count: Float[Array, "batch 1"] | None
    ) -> Float[Array, "batch 1 channels"]:
        """Averages over `count` cells first, by default all, then over groups.

        Reducing small groups first would underuse the vector units.
        """
        means = y.mean(axis=1) if count is None else y.sum(axis=1) / count
        means = means.reshape(y.shape[0], self.groups, -1).mean(axis=-1)
        return jnp.repeat(means, y.shape[-1] // self.groups, axis=-1)[:, None]
