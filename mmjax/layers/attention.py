"""Attention: a pure function first, a module with its projections second."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mmjax.layers.linear import Linear
from mmjax.layers.softmax import masked_softmax
from mmjax.sharding import shard
from mmjax.tokens import Tokens


def attend(
    query: Float[Array, "batch queries heads depth"],
    key: Float[Array, "batch keys heads depth"],
    value: Float[Array, "batch keys heads depth"],
    visible: Bool[Array, "batch queries keys"],
) -> Float[Array, "batch queries heads depth"]:
    """Scaled dot-product attention (Vaswani et al., Attention Is All You Need, 2017).

    The softmax is float32. A query that sees no key gets exactly 0, with gradient 0. `key` and `value` must be finite
    also where they are not visible; `Tokens` holds zeros there.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = masked_softmax(logits * query.shape[-1] ** -0.5, visible[:, None])
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


def visibility(queries: Tokens, keys: Tokens) -> Bool[Array, "batch queries keys"]:
    """Who sees whom: real tokens of the same segment."""
    same = queries.segments[:, :, None] == keys.segments[:, None, :]
    return same & queries.mask[:, :, None] & keys.mask[:, None, :]


class Attention(nnx.Module):
    """Multi-head attention from `queries` to `keys`, with projections in and out.

    Args:
      width: of the queries and of the result.
      heads: divides `width`.
      key_width: width of the keys, if it differs.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, key_width: int | None = None):
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads; choose heads that divide the width")
        self.heads = heads
        key_width = key_width or width
        self.query = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        # A bias on keys shifts all logits of a query alike and would never get a gradient.
        self.key = Linear(key_width, width, axes=("embed", "heads"), bias=False, rngs=rngs)
        self.value = Linear(key_width, width, axes=("embed", "heads"), rngs=rngs)
        self.out = Linear(width, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, queries: Tokens, keys: Tokens) -> Float[Array, "batch queries width"]:
        def split(x):
            x = x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
            return shard(x, "batch", "tokens", "heads", "none")

        query = split(self.query(queries.values))
        key, value = split(self.key(keys.values)), split(self.value(keys.values))
        mixed = attend(query, key, value, visibility(queries, keys))
        out = self.out(mixed.reshape(*queries.values.shape[:-1], -1))
        # Without a visible key the result is 0, not the bias of the projection.
        seen = visibility(queries, keys).any(axis=-1, keepdims=True)
        return shard(jnp.where(seen, out, 0), "batch", "tokens", "width")
