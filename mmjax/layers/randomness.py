"""Random draws that depend only on the example, the layer and the data step.

A dropout mask stays the same for any position of the example in the batch, any number of devices, any microbatch size,
with or without packing, and when a forward pass is recomputed. Equivalence tests can therefore run with dropout on.

The draws hash (example seed, layer, element index) with integer operations instead of `jax.random`: per-example
Threefry keys double the time of a training step on a CPU, and the hardware generators return different bits for
different layouts. The hash takes about ten integer operations per element, which XLA fuses into the multiplication by
the mask.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.tokens import Input, Tokens, pytree, slot_masks


def hash_bits(x: jax.Array) -> jax.Array:
    """Hashes uint32 values bijectively; each output bit depends on all input bits ("lowbias32", C. Wellons)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def flat_index(shape: tuple[int, ...]) -> jax.Array:
    """Row-major index of each element, uint32 [*shape], modulo 2^32. Each device computes only its own shard."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


@pytree
class Randomness:
    """Random state of a batch at one layer of the model.

    Attributes:
      seeds: [B] uint32, one seed per example; for packed tokens [R, N], the seed of each token's example.
      indices: for packed tokens [R, N] uint32, index of each token within its example; else None.
    """

    seeds: Any
    indices: Any = None

    @staticmethod
    def make(seed: int | jax.Array, step: jax.Array, ids: jax.Array) -> Randomness:
        """Derives the state from the seed of the run, the data step [] and the example ids [B]."""
        state = hash_bits(jnp.uint32(seed) ^ jnp.uint32(0x9E3779B9))
        state = hash_bits(state ^ step.astype(jnp.uint32))
        return Randomness(hash_bits(state ^ hash_bits(ids.astype(jnp.uint32) + jnp.uint32(0x85EBCA6B))))

    def for_tokens(self, tokens: Tokens | Input) -> Randomness:
        """Expands the state to packed tokens [R, N], so that each example gets the same draws as when unpacked."""
        if tokens.slots == 1:
            return self
        # Token indices start at 0 for each example. Draws for padding are arbitrary, since padding is masked.
        members = slot_masks(jnp.ones_like(tokens.mask), tokens.segments, tokens.slots)
        index_in_slot = jnp.cumsum(members, axis=2, dtype=jnp.uint32) - 1
        indices = jnp.where(members, index_in_slot, 0).sum(axis=1, dtype=jnp.uint32)
        seeds = self.seeds.reshape(-1, tokens.slots)
        return Randomness(jnp.take_along_axis(seeds, tokens.segments, axis=1), indices)

    def fold_in(self, key: str | int | jax.Array) -> Randomness:
        """Derives the state of a sublayer from its name or its index (which may be traced)."""
        salt = zlib.crc32(key.encode()) if isinstance(key, str) else key
        salt = jnp.uint32(salt) if isinstance(salt, int) else salt.astype(jnp.uint32)
        return Randomness(hash_bits(self.seeds ^ hash_bits(salt + jnp.uint32(0xC2B2AE35))), self.indices)

    def bits_per_example(self) -> jax.Array:
        """Draws one uniform uint32 per example, [B]; for packed tokens [R, N], equal for all tokens of an example."""
        return hash_bits(hash_bits(self.seeds) ^ self.seeds)

    def bits(self, shape: tuple[int, ...]) -> jax.Array:
        """Draws uniform uint32 [B, *shape]; for packed tokens [R, *shape], where `shape[0]` is N."""
        if self.indices is not None:
            return self._packed_bits(shape)
        index, seeds = flat_index(shape), self.seeds.reshape((-1,) + (1,) * len(shape))
        # Two rounds: with one round, the draws of any two examples would be permutations of each other.
        return hash_bits(hash_bits(index[None] + seeds) ^ seeds)

    def _packed_bits(self, shape: tuple[int, ...]) -> jax.Array:
        """Returns [R, *shape], the same bits for each token as `bits` draws for its example when unpacked."""
        feature_index = jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(shape[1:])
        expand = (..., *(None,) * len(shape[1:]))
        seeds, indices = (jnp.broadcast_to(x, (x.shape[0], *shape[:1]))[expand] for x in (self.seeds, self.indices))
        index = indices * jnp.uint32(feature_index.size) + feature_index
        return hash_bits(hash_bits(index + seeds) ^ seeds)

    def keep_mask(self, rate: float, shape: tuple[int, ...]) -> jax.Array:
        """Draws bool [B, *shape], True with probability 1 - rate."""
        return self.bits(shape) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def dropout(x: jax.Array, rate: float, rng: Randomness | None) -> jax.Array:
    """Dropout (Srivastava et al., 2014) of `x` [B, ...]; the identity if `rng` is None (evaluation)."""
    if rng is None or rate == 0.0:
        return x
    return jnp.where(rng.keep_mask(rate, x.shape[1:]), x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(branch: jax.Array, rate: float | jax.Array, rng: Randomness | None) -> jax.Array:
    """Stochastic depth (Huang et al., 2016): drops the residual `branch` [B, ...] of whole examples.

    `rate` may be traced, since it depends on the layer index. The identity if `rng` is None (evaluation).
    """
    if rng is None:
        return branch
    uniform = rng.bits_per_example().astype(jnp.float32) / 2.0**32
    keep = (uniform >= rate).reshape(uniform.shape + (1,) * (branch.ndim - uniform.ndim))
    return jnp.where(keep, branch / (1.0 - rate), 0).astype(branch.dtype)
