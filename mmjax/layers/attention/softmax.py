"""Masked softmax with a memory-saving custom derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED_LOGIT = -1e30
"""Logit of a masked key. Finite, since -inf would give NaN in rows without any visible key."""


@jax.custom_vjp
def masked_softmax(logits: Float[Array, "*rows keys"], visible: Bool[Array, ...]) -> Float[Array, "*rows keys"]:
    """Softmax over the visible keys; exactly 0 for masked keys and in rows without any visible key.

    The custom derivative saves only the weights. JAX's own derivative would save four arrays of the size of the logits
    and two masks.

    Args:
      logits: float32.
      visible: same rank as `logits`, broadcast to its shape.
    """
    return masked_softmax_forward(logits, visible)


def masked_softmax_forward(logits: Float[Array, "*rows keys"], visible: Bool[Array, ...]) -> Float[Array, "*rows keys"]:
    """`masked_softmax` without a custom derivative, for kernels that define their own."""
    logits = jnp.where(visible, logits, MASKED_LOGIT)
    weights = jnp.where(visible, jnp.exp(logits - logits.max(axis=-1, keepdims=True)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def _forward(logits, visible):
    weights = masked_softmax(logits, visible)
    return weights, weights


def softmax_vjp(
    weights: Float[Array, "*rows keys"], cotangent: Float[Array, "*rows keys"]
) -> Float[Array, "*rows keys"]:
    """Gradient of the logits from the softmax output and its cotangent; 0 where `weights` is 0, as for masked keys."""
    mean = (weights * cotangent).sum(axis=-1, keepdims=True)
    return weights * (cotangent - mean)


masked_softmax.defvjp(_forward, lambda weights, cotangent: (softmax_vjp(weights, cotangent), None))
