"""Random draws that depend on the example, the layer and the data step alone.

A mask for dropout is the same whether its example stands first or last in the batch, on one device or on eight, in a
microbatch or in the whole batch, packed beside others or alone, and also when a forward pass is repeated. So equalities
can be tested with dropout on.

The draws are an integer hash of (seed of the example, layer, element), not `jax.random`: per-example Threefry keys make
a training step on a CPU twice as slow, and the hardware generators give other bits for other layouts. The hash costs
about ten integer operations an element, which the compiler fuses into the multiplication by the mask.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.tokens import Input, Tokens, of_slots, pytree


def hash_bits(x: jax.Array) -> jax.Array:
    """A bijection of uint32 whose output bits each depend on all input bits ("lowbias32", by C. Wellons)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@pytree
class Randomness:
    """The state of all draws for a batch in one place of the model.

    Attributes:
      seeds: [B] uint32, one an example; [R, N], that of each token's example, where several share a row.
      places: None; [R, N] uint32, how many tokens of its example stand before each, where several share a row.
    """

    seeds: Any
    places: Any = None

    @staticmethod
    def make(seed: int | jax.Array, step: jax.Array, ids: jax.Array) -> Randomness:
        """From the run's seed, the data step [] and the numbers of the examples [B]."""
        state = hash_bits(jnp.uint32(seed) ^ jnp.uint32(0x9E3779B9))
        state = hash_bits(state ^ step.astype(jnp.uint32))
        return Randomness(hash_bits(state ^ hash_bits(ids.astype(jnp.uint32) + jnp.uint32(0x85EBCA6B))))

    def among(self, tokens: Tokens | Input) -> Randomness:
        """The draws for tokens, or for the elements of an input: those that each example would have by itself."""
        if tokens.slots == 1:
            return self
        # An example's own tokens count from its first, wherever in the row that is; padding draws what nobody sees.
        members = of_slots(jnp.ones_like(tokens.mask), tokens.segments, tokens.slots)
        before = jnp.cumsum(members, axis=2, dtype=jnp.uint32) - 1
        places = jnp.where(members, before, 0).sum(axis=1, dtype=jnp.uint32)
        seeds = self.seeds.reshape(-1, tokens.slots)
        return Randomness(jnp.take_along_axis(seeds, tokens.segments, axis=1), places)

    def fold_in(self, place: str | int | jax.Array) -> Randomness:
        """The draws of a place inside this one: a name, or the number of a layer (which may be traced)."""
        salt = zlib.crc32(place.encode()) if isinstance(place, str) else place
        salt = jnp.uint32(salt) if isinstance(salt, int) else salt.astype(jnp.uint32)
        return Randomness(hash_bits(self.seeds ^ hash_bits(salt + jnp.uint32(0xC2B2AE35))), self.places)

    def each(self) -> jax.Array:
        """[B] uint32, uniform, `bits(())`; among packed tokens [R, N], and equal for all tokens of an example."""
        return hash_bits(hash_bits(self.seeds) ^ self.seeds)

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """[B, *shape] uint32, uniform; among packed tokens [R, *shape], the first of `shape` being the N tokens."""
        if self.places is not None:
            return self._bits_among(shape)
        index = jnp.zeros(shape, jnp.uint32)
        stride = 1
        for axis in reversed(range(len(shape))):
            index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
            stride *= shape[axis]
        seeds = self.seeds.reshape((-1,) + (1,) * len(shape))
        # Two rounds: with one, the draws of two examples would be the same sequence in another order.
        return hash_bits(hash_bits(index[None] + seeds) ^ seeds)

    def _bits_among(self, shape: tuple[int, ...]) -> jax.Array:
        """Each token's are those that `bits` gives it in a row of its example's own."""
        within = jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(shape[1:])
        spread = (..., *(None,) * len(shape[1:]))
        seeds, places = (jnp.broadcast_to(x, (x.shape[0], *shape[:1]))[spread] for x in (self.seeds, self.places))
        index = places * jnp.uint32(within.size) + within
        return hash_bits(hash_bits(index + seeds) ^ seeds)

    def keep(self, rate: float, shape: tuple[int, ...]) -> jax.Array:
        """[B, *shape] bool, True with probability 1 - rate."""
        return self.bits(shape) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def dropout(x: jax.Array, rate: float, rng: Randomness | None) -> jax.Array:
    """Dropout (Srivastava et al., 2014) of [B, ...]; the identity where `rng` is None, in evaluation."""
    if rng is None or rate == 0.0:
        return x
    return jnp.where(rng.keep(rate, x.shape[1:]), x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(branch: jax.Array, rate: float | jax.Array, rng: Randomness | None) -> jax.Array:
    """Stochastic depth (Huang et al., 2016): drops the residual branch [B, ...] of whole examples.

    `rate` may be traced, since it grows with the layer.
    """
    if rng is None:
        return branch
    draw = rng.each().astype(jnp.float32) / 2.0**32
    keep = (draw >= rate).reshape(draw.shape + (1,) * (branch.ndim - draw.ndim))
    return jnp.where(keep, branch / (1.0 - rate), 0).astype(branch.dtype)
