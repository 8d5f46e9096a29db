"""What computes attention on one device: plain XLA anywhere, cuDNN on a GPU, Pallas kernels on a TPU.

All of them take `query` [batch, queries, heads, depth], `key` and `value` [batch, keys, heads, depth], and numbers of
segments [batch, queries] and [batch, keys]: a query sees the keys of its own number. They return [batch, queries,
heads, depth], with exactly 0 for a query that sees no key, and gradient 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Int

from mmjax.layers.attention.short import VECTOR_MEMORY, short_attention, vector_memory
from mmjax.layers.attention.softmax import masked_softmax

TILE = 128
"""Rows of a tile of the Pallas kernel for long sequences."""


def same_segment(
    query_segments: Int[Array, "batch queries"], key_segments: Int[Array, "batch keys"]
) -> Bool[Array, "batch queries keys"]:
    """Which keys each query sees."""
    return query_segments[:, :, None] == key_segments[:, None, :]


def with_xla(query, key, value, query_segments, key_segments):
    """The definition, with a float32 softmax; holds all logits of a layer."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    visible = same_segment(query_segments, key_segments)[:, None]
    weights = masked_softmax(logits * query.shape[-1] ** -0.5, visible)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def with_splash(query, key, value, query_segments, key_segments, *, interpret: bool = False):
    """The Pallas kernel "splash attention" of JAX for TPUs, with tokens padded to whole tiles."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    query, query_segments = _pad(query, query_segments, -1)
    (key, padded_segments), (value, _) = (_pad(x, key_segments, -2) for x in (key, value))
    block_q, block_k = (next(b for b in (512, 256, TILE) if x.shape[1] % b == 0) for x in (query, key))
    blocks = splash.BlockSizes(
        block_q=block_q, block_kv=block_k, block_q_dkv=block_q, block_kv_dkv=block_k, block_q_dq=block_q,
        block_kv_dq=block_k,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.FullMask((query.shape[1], key.shape[1]))] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)

    def one(query, key, value, query_segments, key_segments):
        segments = splash.SegmentIds(q=query_segments, kv=key_segments)
        query, key, value = (x.swapaxes(0, 1) for x in (query * query.shape[-1] ** -0.5, key, value))
        return kernel(query, key, value, segment_ids=segments).swapaxes(0, 1)

    mixed = jax.vmap(one)(query, key, value, query_segments, padded_segments)[:, :queries]
    return _only_seeing(mixed, query_segments[:, :queries], padded_segments[:, :keys])


def _pad(x, segments, absent: int):
    more = -x.shape[1] % TILE
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))), jnp.pad(
        segments, ((0, 0), (0, more)), constant_values=absent
    )


def with_cudnn(query, key, value, query_segments, key_segments):
    """NVIDIA's fused attention.

    Its backward pass returns NaN for a query whose row of the mask is all False, so such queries see every key, and
    their output is zeroed afterwards, which makes their gradients 0, too.
    """
    visible = same_segment(query_segments, key_segments)
    mask = visible | ~visible.any(axis=-1, keepdims=True)
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="cudnn")
    return _only_seeing(mixed, query_segments, key_segments)


def _only_seeing(mixed, query_segments, key_segments):
    """Kernels give a query that sees nothing the mean of all values."""
    seeing = same_segment(query_segments, key_segments).any(axis=-1)
    return jnp.where(seeing[:, :, None, None], mixed, 0)


def _splash_refuses(query, key) -> str | None:
    if min(query.shape[1], key.shape[1]) < TILE:
        return f"{min(query.shape[1], key.shape[1])} tokens are less than a tile of {TILE}"
    return None


def _short_refuses(query, key) -> str | None:
    needed = vector_memory(query, key)
    if needed > VECTOR_MEMORY:
        return f"all heads of an example take {needed >> 20} MiB of the {VECTOR_MEMORY >> 20} MiB of vector memory"
    if query.shape[1] < 8:
        return f"{query.shape[1]} queries leave most of a register empty"
    return None


def _cudnn_refuses(query, key) -> str | None:
    depth = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in bfloat16, not in {query.dtype}"
    if depth > 128 or depth % 8:
        return f"heads of depth {depth} are not a multiple of 8 up to 128"
    if query.shape[1] % 2 or key.shape[1] % 2:
        return f"{query.shape[1]} queries and {key.shape[1]} keys are not both even"
    return None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Attributes:
      platform: where it runs, "" for anywhere.
      refuses: (query, key) -> why it cannot compute this case, or None.
    """

    compute: Callable[..., Any]
    platform: str
    refuses: Callable[[Any, Any], str | None]


KERNELS = {
    "short": Kernel(short_attention, "tpu", _short_refuses),
    "splash": Kernel(with_splash, "tpu", _splash_refuses),
    "cudnn": Kernel(with_cudnn, "gpu", _cudnn_refuses),
    "xla": Kernel(with_xla, "", lambda query, key: None),
}


def choose_kernel(wish: str, platform: str, query: Any, key: Any) -> str:
    """The name in `KERNELS` that computes this case: the one wished for, or with "auto" the platform's first that can.

    Where that is only "xla" on a platform that has kernels of its own, the reasons are logged, once.
    """
    own = [name for name, kernel in KERNELS.items() if kernel.platform == platform]
    reasons = {}
    for name in own if wish == "auto" else [wish]:
        kernel = KERNELS[name]
        reason = kernel.refuses(query, key)
        if kernel.platform not in ("", platform):
            reason = f"it needs a {kernel.platform}, and this is a {platform}"
        if reason is None:
            return name
        reasons[name] = reason
    for name, reason in reasons.items():
        log_once(f"attention is computed by xla and not by {name}: {reason}")
    return "xla"


@functools.cache
def log_once(message: str) -> None:
    logging.warning("%s", message)
