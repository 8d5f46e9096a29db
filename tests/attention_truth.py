"""Attention in float64 from the definition of softmax, and the cases that every kernel is tested on.

Each case has queries without any key: the second example ends in padding, the third is absent, and the last has
queries of a segment without keys.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE = {"float32": 3e-6, "bfloat16": 1.5e-2}
"""Tolerance relative to the largest value of each array; in float32 with matmul precision "highest"."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a case; every example has up to `segments` packed segments."""

    queries: int
    keys: int
    heads: int = 2
    depth: int = 8
    batch: int = 4
    segments: int = 3


SHAPES = {
    "packed": Shape(16, 16),
    "odd lengths": Shape(13, 7),
    "padding alone": Shape(32, 32, segments=1),
    "a head that fills a register": Shape(24, 40, heads=1, depth=128),
    "more than a tile": Shape(130, 258, depth=64),
}


@functools.cache
def parts(shape: Shape, dtype: str = "float32"):
    """Query, key and value; segment ids of queries and keys; the cotangent. Values are representable in `dtype`."""
    draws = np.random.default_rng(3)
    sizes = (shape.queries, shape.keys, shape.keys, shape.queries)
    *arrays, cotangent = (
        jnp.asarray(draws.normal(size=(shape.batch, size, shape.heads, shape.depth)), dtype) for size in sizes
    )
    segments = []
    for size, absent in ((shape.queries, -1), (shape.keys, -2)):
        ids = np.sort(draws.integers(0, shape.segments, (shape.batch, size)), axis=1)
        ids[1, size // 2 :], ids[2], ids[0, 2] = absent, absent, absent
        segments.append(ids.astype(np.int32))
    segments[0][3, :2] = 7
    return arrays, tuple(segments), cotangent


@functools.cache
def truth(shape: Shape, dtype: str = "float32"):
    """The output, and the gradients of query, key and value, in float64."""
    arrays, (query_segments, key_segments), cotangent = parts(shape, dtype)
    query, key, value, cotangent = (np.asarray(x.astype(jnp.float32), np.float64) for x in (*arrays, cotangent))
    scale = shape.depth**-0.5
    visible = query_segments[:, None, :, None] == key_segments[:, None, None, :]
    weights = np.where(visible, np.exp(scale * np.einsum("bqhd,bkhd->bhqk", query, key)), 0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    weight_grads = np.einsum("bqhd,bkhd->bhqk", cotangent, value)
    logit_grads = scale * weights * (weight_grads - (weight_grads * weights).sum(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights, value), (
        np.einsum("bhqk,bkhd->bqhd", logit_grads, key),
        np.einsum("bhqk,bqhd->bkhd", logit_grads, query),
        np.einsum("bhqk,bqhd->bkhd", weights, cotangent),
    )


def check(compute: Callable, shape: Shape, dtype: str = "float32") -> None:
    """Compares a kernel's output and gradients with float64; queries without keys must give exactly 0."""
    arrays, segments, cotangent = parts(shape, dtype)

    def forward_and_backward(*arrays):
        mixed, back = jax.vjp(lambda *arrays: compute(*arrays, *segments), *arrays)
        return mixed, *back(cotangent)

    with jax.default_matmul_precision("highest"):
        found = jax.jit(forward_and_backward)(*arrays)
    true_mixed, true_gradients = truth(shape, dtype)
    visible = segments[0][:, :, None] == segments[1][:, None, :]
    blind, unseen = ~visible.any(axis=2), ~visible.any(axis=1)
    assert blind.any() and unseen.any()
    names, masks = ("out", "dq", "dk", "dv"), (blind, blind, unseen, unseen)
    for name, mask, mine, expected in zip(names, masks, found, (true_mixed, *true_gradients), strict=True):
        assert mine.dtype == dtype
        mine = np.asarray(mine.astype(jnp.float32), np.float64)
        tolerance = TOLERANCE[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(mine, expected, rtol=0, atol=tolerance, err_msg=name)
        assert not mine[mask].any(), f"{name} must be exactly 0 for queries without keys and keys without queries"
