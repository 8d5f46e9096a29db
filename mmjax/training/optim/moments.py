"""Optimiser state in bfloat16 with stochastic rounding: half the memory of float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Int

from mmjax.layers.randomness import flat_index, hash_bits


class RoundedState(NamedTuple):
    """State of `in_bfloat16`.

    Attributes:
      inner: state of the wrapped optimiser, with bfloat16 in place of float32 arrays.
      count: [] int32, number of updates.
    """

    inner: Any
    count: Any


def in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stores the float32 arrays of the state of `inner` in bfloat16 and updates them in float32.

    Stochastic rounding is unbiased. Under round-to-nearest, the second moment of Adam stalls: a step changes it by one
    part in 1,000, and bfloat16 has 8 bits of precision. The random bits depend only on array, element and update count,
    so they are the same on any mesh.
    """

    def init(parameters):
        return RoundedState(_to_bfloat16(inner.init(parameters), None), jnp.zeros((), jnp.int32))

    def update(updates, state, parameters=None):
        updates, inner_state = inner.update(updates, _to_float32(state.inner), parameters)
        return updates, RoundedState(_to_bfloat16(inner_state, state.count), state.count + 1)

    return optax.GradientTransformation(init, update)


def _to_float32(state: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim and x.dtype == jnp.bfloat16 else x, state)


def _to_bfloat16(state: Any, count: jax.Array | None) -> Any:
    """Rounds the state stochastically, or to nearest if `count` is None (initial state)."""
    leaves, tree = jax.tree.flatten(state)
    rounded = []
    for index, leaf in enumerate(leaves):
        if leaf.ndim and leaf.dtype == jnp.float32:
            leaf = leaf.astype(jnp.bfloat16) if count is None else stochastic_round(leaf, index, count)
        rounded.append(leaf)
    return jax.tree.unflatten(tree, rounded)


def stochastic_round(x: Float[Array, "*shape"], index: int, count: Int[Array, ""]) -> BFloat16[Array, "*shape"]:
    """Rounds float32 to one of the two neighbouring bfloat16 values; the nearer one is more probable.

    Args:
      x: float32 values.
      index: index of the array; seeds its random bits.
      count: update count; seeds the random bits too.
    """
    seed = hash_bits(hash_bits(count.astype(jnp.uint32)) ^ jnp.uint32(index))
    draws = hash_bits(hash_bits(flat_index(x.shape) ^ seed) + seed) & jnp.uint32(0xFFFF)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32; the lower half is the probability of rounding away from zero.
    rounded = jax.lax.bitcast_convert_type((bits + draws) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)
