"""Attention kernels for one device: plain XLA on any platform, cuDNN on GPUs, Pallas kernels on TPUs.

All kernels share the signature of `xla_attention`, the reference definition. A query attends to the keys of equal
segment id; a query without a visible key gets exactly 0, with gradient 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float, Int

from mmjax.layers.attention.shapes import Key, KeyIds, Query, QueryIds
from mmjax.layers.attention.short import VMEM_BYTES, short_attention, vmem_bytes
from mmjax.layers.attention.softmax import masked_softmax

TILE = 128
"""Tile size of the splash attention kernel, in tokens."""


def same_segment(query_segments: QueryIds, key_segments: KeyIds) -> Bool[Array, "batch queries keys"]:
    """Attention mask: True where the query and key segments are equal."""
    return query_segments[:, :, None] == key_segments[:, None, :]


def xla_attention(query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds) -> Query:
    """Reference attention with a float32 softmax; materialises the logits [batch, heads, queries, keys]."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    visible = same_segment(query_segments, key_segments)[:, None]
    weights = masked_softmax(logits * query.shape[-1] ** -0.5, visible)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def splash_attention(
    query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds, *, interpret: bool = False
) -> Query:
    """JAX's Pallas splash attention kernel for TPUs; pads the tokens to whole tiles.

    Args:
      query, key, value, query_segments, key_segments: as for `xla_attention`.
      interpret: run the Pallas interpreter, which works on any platform.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    query, query_segments = _pad(query, query_segments, -1)
    (key, padded_segments), (value, _) = (_pad(x, key_segments, -2) for x in (key, value))
    block_q, block_k = (next(size for size in (512, 256, TILE) if x.shape[1] % size == 0) for x in (query, key))
    blocks = splash.BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k, block_q_dq=block_q,
        block_kv_dq=block_k,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.FullMask((query.shape[1], key.shape[1]))] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)

    def attend_example(query, key, value, query_segments, key_segments):
        segments = splash.SegmentIds(q=query_segments, kv=key_segments)
        query, key, value = (x.swapaxes(0, 1) for x in (query * query.shape[-1] ** -0.5, key, value))
        return kernel(query, key, value, segment_ids=segments).swapaxes(0, 1)

    mixed = jax.vmap(attend_example)(query, key, value, query_segments, padded_segments)[:, :queries]
    return _zero_unmatched(mixed, query_segments[:, :queries], padded_segments[:, :keys])


def _pad(
    x: Float[Array, "batch tokens heads depth"], segments: Int[Array, "batch tokens"], padding_segment: int
) -> tuple[Float[Array, "batch padded heads depth"], Int[Array, "batch padded"]]:
    """Pads the tokens to a multiple of `TILE`; padding gets zeros and the segment id `padding_segment`."""
    padding = (0, 0), (0, -x.shape[1] % TILE)
    return jnp.pad(x, (*padding, (0, 0), (0, 0))), jnp.pad(segments, padding, constant_values=padding_segment)


def cudnn_attention(query: Query, key: Key, value: Key, query_segments: QueryIds, key_segments: KeyIds) -> Query:
    """cuDNN fused attention for GPUs.

    cuDNN's backward pass returns NaN for a query whose mask row is all False. Such queries therefore attend to all
    keys, and their output is zeroed afterwards, which also zeroes their gradients.
    """
    visible = same_segment(query_segments, key_segments)
    mask = visible | ~visible.any(axis=-1, keepdims=True)
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="cudnn")
    return _zero_unmatched(mixed, query_segments, key_segments)


def _zero_unmatched(mixed: Query, query_segments: QueryIds, key_segments: KeyIds) -> Query:
    """Zeroes the output of queries without a visible key, for which the kernels return the mean of all values."""
    matched = same_segment(query_segments, key_segments).any(axis=-1)
    return jnp.where(matched[:, :, None, None], mixed, 0)


def _splash_unsupported(query, key) -> str | None:
    length = min(query.shape[1], key.shape[1])
    return f"sequence length {length} is below the tile size {TILE}" if length < TILE else None


def _short_unsupported(query, key) -> str | None:
    needed = vmem_bytes(query, key)
    if needed > VMEM_BYTES:
        return f"all heads of an example need {needed >> 20} MiB of VMEM, more than {VMEM_BYTES >> 20} MiB"
    if query.shape[1] < 8:
        return f"{query.shape[1]} queries fill fewer than the 8 rows of a register"
    return None


def _cudnn_unsupported(query, key) -> str | None:
    depth = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16 or float16, not {query.dtype}"
    if depth > 128 or depth % 8:
        return f"head depth {depth} is not a multiple of 8 up to 128"
    if query.shape[1] % 2 or key.shape[1] % 2:
        return f"needs even lengths, not {query.shape[1]} queries and {key.shape[1]} keys"
    return None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An attention kernel and its requirements.

    Attributes:
      compute: attention function with the signature of `xla_attention`.
      platform: required platform ("tpu", "gpu"), or "" for any.
      unsupported: (query, key) -> reason why the kernel cannot handle these shapes or dtypes, or None.
    """

    compute: Callable[..., Any]
    platform: str
    unsupported: Callable[[Any, Any], str | None]


KERNELS = {
    "short": Kernel(short_attention, "tpu", _short_unsupported),
    "splash": Kernel(splash_attention, "tpu", _splash_unsupported),
    "cudnn": Kernel(cudnn_attention, "gpu", _cudnn_unsupported),
    "xla": Kernel(xla_attention, "", lambda query, key: None),
}


def choose_kernel(requested: str, platform: str, query: Any, key: Any) -> str:
    """Selects a key of `KERNELS`: `requested`, or for "auto" the platform's first kernel that supports the case.

    Falls back to "xla" if none does, and logs the reasons once.

    Args:
      requested: a key in `KERNELS`, or "auto".
      platform: platform of the mesh, such as "tpu".
      query, key: arrays or `ShapeDtypeStruct`s, [batch, tokens, heads, depth].
    """
    candidates = [name for name, kernel in KERNELS.items() if kernel.platform == platform]
    reasons = {}
    for name in candidates if requested == "auto" else [requested]:
        kernel = KERNELS[name]
        reason = kernel.unsupported(query, key)
        if kernel.platform not in ("", platform):
            reason = f"needs a {kernel.platform}, not a {platform}"
        if reason is None:
            return name
        reasons[name] = reason
    for name, reason in reasons.items():
        log_once(f"attention kernel {name!r} is unsupported here, using 'xla': {reason}")
    return "xla"


@functools.cache
def log_once(message: str) -> None:
    """Logs a warning the first time that it is called with this message."""
    logging.warning("%s", message)
