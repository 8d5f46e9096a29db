"""Attention over short sequences as one fused Pallas kernel for TPUs.

If the logits of a head fit into VMEM, no tiling over tokens is needed. The forward kernel reads queries, keys and
values once and writes the output; the backward kernel reads them again with the cotangent and writes the gradients.
Neither logits nor softmax statistics reach HBM. Arrays keep the layout [batch, tokens, heads * depth] of the
projections: kernels that expect heads before tokens need a transposed copy of each array, and with depth 64 half of
each register of that copy is empty.

The lanes of a head need not be aligned to registers of 128 lanes. The kernel loads the aligned window around a head and
zeroes the lanes of its neighbours, for example with depth 72:

    head 0: lanes 0 to 71, window 0 to 127, zeroed 72 to 127
    head 1: lanes 72 to 143, window 0 to 255, zeroed 0 to 71 and 144 to 255

Multiplying these zeros costs nothing, since the matrix unit is 128 deep anyway.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.attention.shapes import Key, KeyIds, Query, QueryIds
from mmjax.layers.attention.softmax import masked_softmax_forward, softmax_vjp

LANES = 128
"""Lanes of a TPU register."""

VMEM_BYTES = 16 * 2**20
"""VMEM of a TPU v4, the smallest of all TPUs, in bytes."""

_TOKENS_PER_BLOCK = 256


def short_attention(
    query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds, *, interpret: bool = False
) -> Query:
    """Fused attention for sequences whose `vmem_bytes` fit into VMEM.

    Args:
      query, key, value, query_segments, key_segments: as for `mmjax.layers.attention.kernels.xla_attention`.
      interpret: run the Pallas interpreter, which works on any platform.
    """
    batch, _, heads, depth = query.shape
    flat = (x.reshape(batch, x.shape[1], heads * depth) for x in (query, key, value))
    mixed = _attend(*flat, query_segments[:, :, None], key_segments[:, None, :], heads, interpret)
    return mixed.reshape(query.shape)


def vmem_bytes(query: Query, key: Key) -> int:
    """Estimates the VMEM that the backward kernel needs, in bytes.

    Counts the blocks of three query-sized arrays (query, cotangent, query gradient) and four key-sized arrays (key,
    value and their gradients), each double-buffered, and six float32 arrays of the size of one head's logits.
    """
    (batch, queries, heads, depth), keys = query.shape, key.shape[1]
    examples = _examples_per_block(batch, queries, keys)
    bytes_per_token = 2 * examples * -(-depth * heads // LANES) * LANES * query.dtype.itemsize
    return bytes_per_token * (3 * queries + 4 * keys) + 6 * 4 * queries * keys


def _examples_per_block(batch: int, queries: int, keys: int) -> int:
    """Number of examples per grid step: more than one for very short sequences."""
    return math.gcd(batch, max(1, _TOKENS_PER_BLOCK // max(queries, keys)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(query, key, value, query_segments, key_segments, heads, interpret):
    """Attention on arrays [batch, tokens, width], with segments [batch, queries, 1] and [batch, 1, keys]."""
    return _forward(query, key, value, query_segments, key_segments, heads, interpret)[0]


def _forward(query, key, value, query_segments, key_segments, heads, interpret):
    arrays = (query, key, value, query_segments, key_segments)
    return _call(_forward_kernel, "short_attention", arrays, [query], heads, 2, interpret)[0], arrays


def _backward(heads, interpret, arrays, cotangent):
    outputs, arrays = list(arrays[:3]), (*arrays, cotangent)
    gradients = _call(_backward_kernel, "short_attention_gradient", arrays, outputs, heads, 5, interpret)
    return *gradients, None, None


_attend.defvjp(_forward, _backward)


def _call(kernel: Callable, name: str, arrays, outputs, heads: int, matmuls: int, interpret: bool):
    """Runs `kernel` over blocks of whole examples.

    Args:
      kernel: called with `heads`, then the references to `arrays` and `outputs`.
      name: name of the custom call.
      arrays: query, key, value and further inputs, [batch, ...].
      outputs: arrays of the shapes and dtypes of the results.
      heads: number of heads.
      matmuls: matrix products per head, for the cost estimate.
      interpret: run the Pallas interpreter.
    """
    query, key = arrays[:2]
    (batch, queries, width), keys = query.shape, key.shape[1]
    examples = _examples_per_block(batch, queries, keys)

    def block(x):
        return pl.BlockSpec((examples, *x.shape[1:]), lambda index: (index, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, heads),
        grid=(batch // examples,),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        cost_estimate=pl.CostEstimate(
            flops=matmuls * 2 * batch * queries * keys * width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *outputs)),
            transcendentals=batch * heads * queries * keys,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES),
        interpret=interpret,
        name=name,
    )(*arrays)


@dataclasses.dataclass(frozen=True)
class _Head:
    """Lane window of one head of one example, for references [examples, tokens, width].

    Attributes:
      example: index of the example in the block.
      start, stop: lanes of the aligned window around the head.
      lanes: [1, stop - start] bool, True for the lanes of the head; None if the head fills the window.
    """

    example: Int[Array, ""]
    start: int
    stop: int
    lanes: Bool[Array, "1 window"] | None

    def load(self, ref: Any) -> Float[Array, "tokens window"]:
        """Loads the window, which includes lanes of neighbouring heads."""
        return ref[self.example, :, self.start : self.stop]

    def load_masked(self, ref: Any) -> Float[Array, "tokens window"]:
        """Loads the window and zeroes the lanes of neighbouring heads."""
        x = self.load(ref)
        return x if self.lanes is None else jnp.where(self.lanes, x, jnp.zeros_like(x))

    def store(self, ref: Any, x: Float[Array, "tokens window"]) -> None:
        """Stores the lanes of this head and keeps those of its neighbours."""
        x = x.astype(ref.dtype)
        x = x if self.lanes is None else jnp.where(self.lanes, x, self.load(ref))
        ref[self.example, :, self.start : self.stop] = x


def _split_heads(example: Int[Array, ""], heads: int, width: int) -> Iterator[_Head]:
    """Yields the lane window of each head."""
    depth = width // heads
    for first in range(0, width, depth):
        last = first + depth
        start, stop = first // LANES * LANES, min(width, -(-last // LANES) * LANES)
        lanes = None
        if stop - start > depth:
            lane = start + jax.lax.broadcasted_iota(jnp.int32, (1, stop - start), 1)
            lanes = (lane >= first) & (lane < last)
        yield _Head(example, start, stop, lanes)


def _matmul(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> Float[Array, "m n"]:
    """Contracts axis `axes[0]` of `a` with axis `axes[1]` of `b`, accumulating in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def _forward_kernel(heads, query, key, value, query_segments, key_segments, mixed):
    """Writes softmax(q k^T / sqrt(depth)) v for all heads of each example of the block."""
    scale = (query.shape[-1] // heads) ** -0.5

    def attend_example(example, _):
        visible = query_segments[example] == key_segments[example]
        for head in _split_heads(example, heads, query.shape[-1]):
            logits = _matmul(head.load_masked(query), head.load(key), (1, 1))
            weights, v = masked_softmax_forward(logits * scale, visible), head.load(value)
            head.store(mixed, _matmul(weights.astype(v.dtype), v, (1, 0)))

    jax.lax.fori_loop(0, query.shape[0], attend_example, None)


def _backward_kernel(
    heads, query, key, value, query_segments, key_segments, cotangent, query_gradient, key_gradient, value_gradient
):
    """Writes the gradients of query, key and value for all heads of each example of the block."""
    scale = (query.shape[-1] // heads) ** -0.5

    def differentiate_example(example, _):
        visible = query_segments[example] == key_segments[example]
        for head in _split_heads(example, heads, query.shape[-1]):
            q, k, v, dy = head.load_masked(query), head.load(key), head.load(value), head.load_masked(cotangent)
            weights = masked_softmax_forward(_matmul(q, k, (1, 1)) * scale, visible)
            head.store(value_gradient, _matmul(weights.astype(dy.dtype), dy, (0, 0)))
            logit_grads = (softmax_vjp(weights, _matmul(dy, v, (1, 1))) * scale).astype(q.dtype)
            head.store(query_gradient, _matmul(logit_grads, k, (1, 0)))
            head.store(key_gradient, _matmul(logit_grads, q, (0, 0)))

    jax.lax.fori_loop(0, query.shape[0], differentiate_example, None)
