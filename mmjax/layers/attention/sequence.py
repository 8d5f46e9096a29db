"""Attention among tokens that are split over devices: as a ring, or by exchanging tokens for heads.

Both run inside `jax.shard_map` on what one device holds: some tokens of all examples of its share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.layers.attention.kernels import same_segment
from mmjax.layers.attention.softmax import NEVER
from mmjax.sharding import num_chunks, ring_scan

BLOCK = 2**24
"""So many logits does a device compute at once at most: 64 MiB."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_attention(axes: tuple[str, ...], query, key, value, query_segments, key_segments):
    """Ring attention (Liu et al., Ring Attention with Blockwise Transformers for Near-Infinite Context, 2023).

    Keys and values go around; each device adds up what its queries see of them. In the derivative they go around once
    more and bring their gradients home, so that no device ever keeps the keys of all.

    Args:
      axes: mesh axes that the tokens are split over.
      query, key, value, query_segments, key_segments: as in `mmjax.layers.attention.kernels`, of this device.
    """
    return _forward(axes, query, key, value, query_segments, key_segments)[0]


def _logits(query, query_segments, visitor):
    visible = same_segment(query_segments, visitor["segments"])[:, None]
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, visitor["key"], preferred_element_type=jnp.float32)
    return jnp.where(visible, logits * query.shape[-1] ** -0.5, NEVER), visible


def _go_around(meet: Callable, carry: Any, visitor: Any, query, key, axes):
    batch, queries, heads, _ = query.shape
    chunks = num_chunks(key.shape[1], batch * heads * queries, BLOCK)
    return ring_scan(meet, carry, visitor, axes, chunks=chunks, axis=1)


def _rows(x):
    """[batch, heads, queries] beside [batch, queries, heads, depth]."""
    return x.swapaxes(1, 2)[..., None]


def _forward(axes, query, key, value, query_segments, key_segments):
    batch, queries, heads, _ = query.shape

    def meet(sums, visitor):
        top, total, mixed = sums
        logits, visible = _logits(query, query_segments, visitor)
        new_top = jnp.maximum(top, logits.max(axis=-1))
        weights = jnp.where(visible, jnp.exp(logits - new_top[..., None]), 0.0)
        shrink = jnp.exp(top - new_top)
        seen = visitor["value"]
        more = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(seen.dtype), seen, preferred_element_type=jnp.float32)
        return (new_top, total * shrink + weights.sum(axis=-1), mixed * _rows(shrink) + more), visitor

    row = (batch, heads, queries)
    start = jnp.full(row, NEVER), jnp.zeros(row), jnp.zeros(query.shape, jnp.float32)
    visitor = {"key": key, "value": value, "segments": key_segments}
    (top, total, mixed), _ = _go_around(meet, start, visitor, query, key, axes)
    total = jnp.where(total > 0, total, 1.0)
    mixed = (mixed / _rows(total)).astype(value.dtype)
    return mixed, (query, key, value, query_segments, key_segments, mixed, top + jnp.log(total))


def _backward(axes, saved, pull):
    query, key, value, query_segments, key_segments, mixed, norm = saved
    scale = query.shape[-1] ** -0.5
    # What the softmax takes off each slope: the sum of its row (Dao et al., FlashAttention, 2022).
    mean = (pull.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)

    def product(form, *factors):
        return jnp.einsum(form, *factors, preferred_element_type=jnp.float32)

    def meet(of_query, visitor):
        logits, visible = _logits(query, query_segments, visitor)
        weights = jnp.where(visible, jnp.exp(logits - norm[..., None]), 0.0)
        slopes = weights * (product("bqhd,bkhd->bhqk", pull, visitor["value"]) - mean[..., None]) * scale
        weights, slopes = weights.astype(value.dtype), slopes.astype(query.dtype)
        of_key = visitor["of_key"] + product("bhqk,bqhd->bkhd", slopes, query)
        of_value = visitor["of_value"] + product("bhqk,bqhd->bkhd", weights, pull)
        of_query += product("bhqk,bkhd->bqhd", slopes, visitor["key"])
        return of_query, {**visitor, "of_key": of_key, "of_value": of_value}

    visitor = {"key": key, "value": value, "segments": key_segments}
    visitor |= {"of_key": jnp.zeros(key.shape, jnp.float32), "of_value": jnp.zeros(value.shape, jnp.float32)}
    of_query, visitor = _go_around(meet, jnp.zeros(query.shape, jnp.float32), visitor, query, key, axes)
    gradients = of_query, visitor["of_key"], visitor["of_value"]
    return *(g.astype(x.dtype) for g, x in zip(gradients, (query, key, value), strict=True)), None, None


ring_attention.defvjp(_forward, _backward)


def all_to_all_attention(axes: tuple[str, ...], compute: Callable, query, key, value, query_segments, key_segments):
    """Each device gets all tokens of some of its heads, and gives the result back by tokens.

    Jacobs et al., DeepSpeed Ulysses (2023).

    Args:
      axes: mesh axes that the tokens are split over; their size divides the heads.
      compute: a kernel of `mmjax.layers.attention.kernels`.
      query, key, value, query_segments, key_segments: as there, of this device.
    """
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
    query, key, value = (exchange(x, split_axis=2, concat_axis=1) for x in (query, key, value))
    segments = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (query_segments, key_segments))
    return exchange(compute(query, key, value, *segments), split_axis=1, concat_axis=2)
