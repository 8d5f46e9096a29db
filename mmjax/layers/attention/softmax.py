"""Softmax over what may be seen, with a derivative that keeps the result alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NEVER = -1e30
"""The logit of a key that may not be seen. Finite, so that a row without any key gives no NaN."""


@jax.custom_vjp
def masked_softmax(logits: Float[Array, "*rows keys"], visible: Bool[Array, ...]) -> Float[Array, "*rows keys"]:
    """Softmax over the visible keys; exactly 0 elsewhere, and in rows that see no key at all.

    JAX's own derivative would keep four arrays of the size of the logits and two masks for the backward pass. This one
    keeps the weights.

    Args:
      visible: has the rank of `logits` and broadcasts to it.
    """
    return visible_softmax(logits, visible)


def visible_softmax(logits: jax.Array, visible: jax.Array) -> jax.Array:
    """The same without a derivative, for kernels that have their own."""
    logits = jnp.where(visible, logits, NEVER)
    weights = jnp.where(visible, jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def _forward(logits, visible):
    weights = masked_softmax(logits, visible)
    return weights, weights


def to_logits(weights: jax.Array, gradient: jax.Array) -> jax.Array:
    """The derivative with respect to the logits: the weights are 0 where nothing is seen, and so is what comes back."""
    mean = (weights * gradient).sum(axis=-1, keepdims=True)
    return weights * (gradient - mean)


masked_softmax.defvjp(_forward, lambda weights, gradient: (to_logits(weights, gradient), None))
