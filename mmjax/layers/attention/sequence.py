"""Attention over tokens that are split across devices: ring attention and all-to-all (Ulysses) attention.

Both functions run inside `jax.shard_map` on the local arrays of one device. The shapes below are local: `queries` and
`keys` count the tokens of one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.layers.attention.kernels import same_segment
from mmjax.layers.attention.shapes import Key, KeyIds, Query, QueryIds
from mmjax.layers.attention.softmax import MASKED_LOGIT
from mmjax.sharding import num_chunks, ring_scan

MAX_LOGITS = 2**24
"""Maximum number of logits that a device holds at once (64 MiB in float32)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(
    axes: tuple[str, ...], query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds
) -> Query:
    """Ring attention (Liu et al., Ring Attention with Blockwise Transformers for Near-Infinite Context, 2023).

    Keys and values rotate around the ring, while each device accumulates the attention of its queries with an online
    softmax. In the backward pass they rotate once more together with their gradients. No device ever holds the keys of
    all devices.

    Args:
      axes: mesh axes that split the tokens.
      query, key, value, query_segments, key_segments: as for `mmjax.layers.attention.kernels.xla_attention`, local.
    """
    return _forward(axes, query, key, value, query_segments, key_segments)[0]


def _masked_logits(query: Query, query_segments: QueryIds, visitor: Any) -> tuple[Array, Array]:
    """Returns logits [batch, heads, queries, keys] of the visiting keys and their mask [batch, 1, queries, keys]."""
    visible = same_segment(query_segments, visitor["segments"])[:, None]
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, visitor["key"], preferred_element_type=jnp.float32)
    return jnp.where(visible, logits * query.shape[-1] ** -0.5, MASKED_LOGIT), visible


def _rotate(update: Callable, carry: Any, visitor: Any, query, key, axes):
    """Calls `update(carry, visitor)` with the keys of every device, in pieces of at most `MAX_LOGITS` logits."""
    batch, queries, heads, _ = query.shape
    pieces = num_chunks(key.shape[1], batch * heads * queries, MAX_LOGITS)
    return ring_scan(update, carry, visitor, axes, chunks=pieces, axis=1)


def _expand(x: Float[Array, "batch heads queries"]) -> Float[Array, "batch queries heads 1"]:
    return x.swapaxes(1, 2)[..., None]


def _forward(axes, query, key, value, query_segments, key_segments):
    batch, queries, heads, _ = query.shape

    def update(carry, visitor):
        # Online softmax: rescale the running sums whenever the running maximum grows.
        maximum, total, output = carry
        logits, visible = _masked_logits(query, query_segments, visitor)
        new_maximum = jnp.maximum(maximum, logits.max(axis=-1))
        weights = jnp.where(visible, jnp.exp(logits - new_maximum[..., None]), 0.0)
        rescale = jnp.exp(maximum - new_maximum)
        v = visitor["value"]
        added = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (new_maximum, total * rescale + weights.sum(axis=-1), output * _expand(rescale) + added), visitor

    shape = (batch, heads, queries)
    carry = jnp.full(shape, MASKED_LOGIT), jnp.zeros(shape), jnp.zeros(query.shape, jnp.float32)
    visitor = {"key": key, "value": value, "segments": key_segments}
    (maximum, total, output), _ = _rotate(update, carry, visitor, query, key, axes)
    total = jnp.where(total > 0, total, 1.0)
    output = (output / _expand(total)).astype(value.dtype)
    return output, (query, key, value, query_segments, key_segments, output, maximum + jnp.log(total))


def _backward(axes, saved, cotangent):
    query, key, value, query_segments, key_segments, output, log_normaliser = saved
    scale = query.shape[-1] ** -0.5
    # sum_k weights * d(weights) equals sum_d cotangent * output (Dao et al., FlashAttention, 2022).
    mean = (cotangent.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)

    def einsum(equation, *operands):
        return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)

    def update(query_grad, visitor):
        logits, visible = _masked_logits(query, query_segments, visitor)
        weights = jnp.where(visible, jnp.exp(logits - log_normaliser[..., None]), 0.0)
        weight_grads = einsum("bqhd,bkhd->bhqk", cotangent, visitor["value"])
        logit_grads = weights * (weight_grads - mean[..., None]) * scale
        weights, logit_grads = weights.astype(value.dtype), logit_grads.astype(query.dtype)
        key_grad = visitor["key_grad"] + einsum("bhqk,bqhd->bkhd", logit_grads, query)
        value_grad = visitor["value_grad"] + einsum("bhqk,bqhd->bkhd", weights, cotangent)
        query_grad += einsum("bhqk,bkhd->bqhd", logit_grads, visitor["key"])
        return query_grad, {**visitor, "key_grad": key_grad, "value_grad": value_grad}

    visitor = {"key": key, "value": value, "segments": key_segments}
    visitor |= {"key_grad": jnp.zeros(key.shape, jnp.float32), "value_grad": jnp.zeros(value.shape, jnp.float32)}
    query_grad, visitor = _rotate(update, jnp.zeros(query.shape, jnp.float32), visitor, query, key, axes)
    gradients = query_grad, visitor["key_grad"], visitor["value_grad"]
    return *(g.astype(x.dtype) for g, x in zip(gradients, (query, key, value), strict=True)), None, None


ring_attention.defvjp(_forward, _backward)


def all_to_all_attention(
    axes: tuple[str, ...], compute, query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds
) -> Query:
    """All-to-all sequence parallelism (Jacobs et al., DeepSpeed Ulysses, 2023).

    Exchanges a split over tokens for a split over heads, runs `compute` on all tokens, and exchanges the output back.

    Args:
      axes: mesh axes that split the tokens; their total size divides the number of heads.
      compute: a kernel of `mmjax.layers.attention.kernels`.
      query, key, value, query_segments, key_segments: as for `mmjax.layers.attention.kernels.xla_attention`, local.
    """
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
    query, key, value = (exchange(x, split_axis=2, concat_axis=1) for x in (query, key, value))
    segments = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (query_segments, key_segments))
    return exchange(compute(query, key, value, *segments), split_axis=1, concat_axis=2)
