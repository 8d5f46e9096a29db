"""An optimiser whose state lies in bfloat16 between the steps, half of what it needs in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.layers.randomness import hash_bits


class RoundedState(NamedTuple):
    """The state of the optimiser within, and how many updates there were."""

    inner: Any
    count: Any


def in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps all float32 arrays of the state of `inner` in bfloat16; computes in float32.

    They are rounded up or down with the probability that makes the mean right. Rounded to the nearest, the second
    moment of Adam would never move again: a step changes it by a thousandth, and bfloat16 has 8 bits. The draws depend
    on the element and the number of the update alone, so they are the same on any mesh.
    """

    def init(parameters):
        return RoundedState(_down(inner.init(parameters), None), jnp.zeros((), jnp.int32))

    def update(updates, state, parameters=None):
        updates, after = inner.update(updates, _up(state.inner), parameters)
        return updates, RoundedState(_down(after, state.count), state.count + 1)

    return optax.GradientTransformation(init, update)


def _up(state: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim and x.dtype == jnp.bfloat16 else x, state)


def _down(state: Any, count: jax.Array | None) -> Any:
    """The state in bfloat16; without a count, at the beginning, rounded to the nearest."""
    leaves, tree = jax.tree.flatten(state)
    rounded = []
    for number, leaf in enumerate(leaves):
        if leaf.ndim and leaf.dtype == jnp.float32:
            leaf = leaf.astype(jnp.bfloat16) if count is None else stochastic_round(leaf, number, count)
        rounded.append(leaf)
    return jax.tree.unflatten(tree, rounded)


def stochastic_round(x: jax.Array, number: int, count: jax.Array) -> jax.Array:
    """`x`, float32, in bfloat16: one of the two neighbours, the nearer one with the larger probability.

    Args:
      number: of the array, so that arrays have draws of their own.
      count: of the update.
    """
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    seed = hash_bits(hash_bits(count.astype(jnp.uint32)) ^ jnp.uint32(number))
    draws = hash_bits(hash_bits(index ^ seed) + seed) & jnp.uint32(0xFFFF)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # bfloat16 is the upper half of float32: what stands in the lower half is the chance to be rounded away from zero.
    up = jax.lax.bitcast_convert_type((bits + draws) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), up, x).astype(jnp.bfloat16)
