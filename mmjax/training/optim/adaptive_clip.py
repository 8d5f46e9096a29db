"""Adaptive gradient clipping."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from mmjax.config import Above

MIN_NORM = 1e-3
"""Lower bound of weight norms, so that parameters initialised to 0 can still be updated."""


class AdaptiveClip:
    """Adaptive gradient clipping: limits the gradient norm of each unit relative to the norm of its weights.

    A unit is one output channel: the slice of a matrix or of a convolution kernel of any rank along its last axis. A
    vector is one unit.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization (2021).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `AdaptiveClip`.

        Attributes:
          clipping: maximum ratio of gradient norm to weight norm, per unit.
        """

        clipping: Annotated[float, Above(0)] = 0.01

    def __call__(self, config: Config) -> optax.GradientTransformation:
        def clip(gradient, weights):
            limit = config.clipping * jnp.maximum(_unit_norms(weights), MIN_NORM)
            norms = _unit_norms(gradient)
            return jnp.where(norms > limit, gradient * (limit / jnp.maximum(norms, 1e-6)), gradient)

        return optax.stateless(lambda updates, parameters: jax.tree.map(clip, updates, parameters))


def _unit_norms(x: jax.Array) -> jax.Array:
    """Norm of each output channel, [1, ..., channels]; of all of `x` if it is a vector."""
    axes = tuple(range(x.ndim - 1)) if jnp.squeeze(x).ndim > 1 else None
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
