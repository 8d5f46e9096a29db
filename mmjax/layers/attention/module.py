"""Multi-head attention with projections."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.attention.attend import attend, visible_segments
from mmjax.layers.attention.kernels import same_segment
from mmjax.layers.linear import Linear
from mmjax.sharding import shard
from mmjax.tokens import Tokens


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
        segments = visible_segments(queries, keys)
        mixed = attend(query, key, value, *segments)
        out = self.out(mixed.reshape(*queries.values.shape[:-1], -1))
        if keys is not queries:
            # Without a visible key the result is 0, not the bias of the projection. Tokens always see themselves.
            out = jnp.where(same_segment(*segments).any(axis=-1, keepdims=True), out, 0)
        return shard(out, "batch", "tokens", "width")
