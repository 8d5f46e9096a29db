"""Checksums of arrays, independent of their sharding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.layers.randomness import flat_index

_CHUNK = 2**16
"""Elements that the host hashes at a time, so that they stay in its cache."""


def tree_checksums(tree: Any) -> dict[str, int]:
    """Returns `{path of an array: 32-bit checksum}`.

    Each device reads only its own shard, so every host verifies its part of a restored checkpoint. A change of one
    element always changes the checksum; any other change goes undetected with a probability of 2**-32.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get([_host_sum(leaf) if _on_host(leaf) else _device_sum(leaf) for _, leaf in leaves])
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


def _on_host(array: jax.Array) -> bool:
    """Returns True if NumPy can read all of the array in place, which saves compiling a program for each shape."""
    return array.is_fully_addressable and next(iter(array.devices())).platform == "cpu"


def _host_sum(array: jax.Array) -> np.uint32:
    words = _words(array) if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) else _host_words(np.asarray(array))
    words, total = np.asarray(words).reshape(-1), 0
    for start in range(0, words.size, _CHUNK):
        chunk = words[start : start + _CHUNK]
        index = np.arange(start, start + chunk.size, dtype=np.uint64).astype(np.uint32)
        total += int(_hash(chunk, index).sum(dtype=np.uint64))
    return np.uint32(total % 2**32)


@jax.jit
def _device_sum(array: jax.Array) -> jax.Array:
    words = _words(array)
    return jnp.sum(_hash(words, flat_index(words.shape)), dtype=jnp.uint32)


def _hash(words: Any, index: Any) -> Any:
    """Hashes uint32 words with their indices: for each index, a bijection of the word.

    The mixing is the finaliser of MurmurHash3 (Appleby, 2011). Works on NumPy and JAX arrays.
    """
    one = words.dtype.type
    words = words ^ (index * one(0x9E3779B1) + one(1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> one(shift))) * one(factor)
    return words ^ (words >> one(16))


def _host_words(array: np.ndarray) -> np.ndarray:
    """Returns the bits as uint32: one word per element, or two for 64 bits."""
    if array.dtype.itemsize >= 4:
        return np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    if array.dtype.name in ("int2", "uint2", "int4", "uint4"):
        return array.astype(np.int32).view(np.uint32)
    return np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * array.dtype.itemsize}").astype(np.uint32)


def _words(array: jax.Array) -> jax.Array:
    """Returns the bits as uint32: one word per element, or two along a new last axis for 64 bits."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if jnp.issubdtype(array.dtype, jnp.integer) and jnp.iinfo(array.dtype).bits < 8:
        return jax.lax.bitcast_convert_type(array.astype(jnp.int32), jnp.uint32)
    bits = 8 * array.dtype.itemsize
    return jax.lax.bitcast_convert_type(array, f"uint{min(bits, 32)}").astype(jnp.uint32)
