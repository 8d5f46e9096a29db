"""Attention over short sequences as one Pallas kernel for TPUs: all heads of an example at a time.

Where the logits of a head fit into the chip's vector memory, nothing is left to tile: one pass reads queries, keys and
values and writes the result, another reads them with the result's gradient and writes theirs, and neither logits nor
statistics of the softmax ever reach the main memory. Arrays stay [tokens, width] as projections make them; kernels that
want heads in front of tokens cost a transposed copy of each, of which heads of depth 64 leave half empty.

A head's lanes need not begin where a register of 128 does. The kernel takes the aligned lanes around a head and puts
zeros in place of its neighbours: the product with zeros costs nothing, as the matrix unit is 128 deep anyway.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.layers.attention.softmax import to_logits, visible_softmax

LANES = 128
VECTOR_MEMORY = 16 * 2**20
"""Bytes of the smallest vector memory, that of a TPU v4."""
_TOKENS_AT_ONCE = 256


def short_attention(query, key, value, query_segments, key_segments, *, interpret: bool = False):
    """Attention as `mmjax.layers.attention.kernels` defines it, where `vector_memory` of queries and keys is there."""
    batch, _, heads, depth = query.shape
    flat = (x.reshape(batch, x.shape[1], heads * depth) for x in (query, key, value))
    mixed = _attend(*flat, query_segments[:, :, None], key_segments[:, None, :], heads, interpret)
    return mixed.reshape(query.shape)


def vector_memory(query, key) -> int:
    """Bytes that the backward pass needs at once, about.

    Blocks of queries, their result's gradient and their own, keys, values and theirs, each twice, as the next are
    fetched meanwhile; and six arrays like the logits of a head.
    """
    (batch, queries, heads, depth), keys = query.shape, key.shape[1]
    rows = _rows(batch, queries, keys)
    blocks = 2 * rows * -(-depth * heads // LANES) * LANES * query.dtype.itemsize
    return blocks * (3 * queries + 4 * keys) + 6 * 4 * queries * keys


def _rows(batch: int, queries: int, keys: int) -> int:
    """Examples at a time: more than one where they are short."""
    return math.gcd(batch, max(1, _TOKENS_AT_ONCE // max(queries, keys)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(query, key, value, asking, asked, heads, interpret):
    return _forward(query, key, value, asking, asked, heads, interpret)[0]


def _forward(query, key, value, asking, asked, heads, interpret):
    arrays = (query, key, value, asking, asked)
    return _call(_forward_kernel, "short_attention", arrays, [query], heads, 2, interpret)[0], arrays


def _backward(heads, interpret, arrays, gradient):
    query, key, value, *_ = arrays
    given = (*arrays, gradient)
    found = _call(_backward_kernel, "short_attention_gradient", given, [query, key, value], heads, 5, interpret)
    return *found, None, None


_attend.defvjp(_forward, _backward)


def _call(kernel: Callable, name: str, arrays, results, heads: int, products: int, interpret: bool):
    """Runs `kernel` on a few examples at a time; `products` are its matrix products of a head."""
    query, key = arrays[:2]
    (batch, queries, width), keys = query.shape, key.shape[1]
    rows = _rows(batch, queries, keys)
    touched = sum(x.size * x.dtype.itemsize for x in (*arrays, *results))

    def block(x):
        return pl.BlockSpec((rows, *x.shape[1:]), lambda number: (number, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, heads),
        grid=(batch // rows,),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * batch * queries * keys * width,
            bytes_accessed=touched,
            transcendentals=batch * heads * queries * keys,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VECTOR_MEMORY),
        interpret=interpret,
        name=name,
    )(*arrays)


def _windows(heads: int, depth: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(lo, hi, head) of each head: the aligned lanes around it."""
    for head in range(heads):
        lo, hi = head * depth, (head + 1) * depth
        yield lo // LANES * LANES, min(width, -(-hi // LANES) * LANES), head


def _own(lo: int, hi: int, head: int, depth: int) -> jax.Array | None:
    """[1, hi - lo] bool: the lanes of a head, None where these are all."""
    if (lo, hi) == (head * depth, (head + 1) * depth):
        return None
    lane = lo + jax.lax.broadcasted_iota(jnp.int32, (1, hi - lo), 1)
    return (lane >= head * depth) & (lane < (head + 1) * depth)


def _only(own: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if own is None else jnp.where(own, x, jnp.zeros_like(x))


def _write(ref, row, lo: int, hi: int, own: jax.Array | None, x: jax.Array) -> None:
    x = x.astype(ref.dtype)
    ref[row, :, lo:hi] = x if own is None else jnp.where(own, x, ref[row, :, lo:hi])


def _product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=jnp.float32)


def _weights(query, key, visible, depth: int) -> jax.Array:
    return visible_softmax(_product(query, key, (1, 1)) * depth**-0.5, visible)


def _each_head(heads: int, query, asking, asked, body: Callable) -> None:
    """Calls `body(row, lo, hi, own lanes, what each query of the row sees, depth)` for each head of each row."""
    rows, _, width = query.shape
    depth = width // heads

    def one(row, _):
        visible = asking[row] == asked[row]
        for lo, hi, head in _windows(heads, depth, width):
            body(row, lo, hi, _own(lo, hi, head, depth), visible, depth)

    jax.lax.fori_loop(0, rows, one, None)


def _forward_kernel(heads, query, key, value, asking, asked, mixed):
    def one(row, lo, hi, own, visible, depth):
        weights = _weights(_only(own, query[row, :, lo:hi]), key[row, :, lo:hi], visible, depth)
        values = value[row, :, lo:hi]
        _write(mixed, row, lo, hi, own, _product(weights.astype(values.dtype), values, (1, 0)))

    _each_head(heads, query, asking, asked, one)


def _backward_kernel(heads, query, key, value, asking, asked, gradient, to_query, to_key, to_value):
    def one(row, lo, hi, own, visible, depth):
        q, k, v = _only(own, query[row, :, lo:hi]), key[row, :, lo:hi], value[row, :, lo:hi]
        dy = _only(own, gradient[row, :, lo:hi])
        weights = _weights(q, k, visible, depth)
        _write(to_value, row, lo, hi, own, _product(weights.astype(dy.dtype), dy, (0, 0)))
        slope = (to_logits(weights, _product(dy, v, (1, 1))) * depth**-0.5).astype(q.dtype)
        _write(to_query, row, lo, hi, own, _product(slope, k, (1, 0)))
        _write(to_key, row, lo, hi, own, _product(slope, q, (0, 0)))

    _each_head(heads, query, asking, asked, one)
