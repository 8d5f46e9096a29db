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
    """Multi-head attention from `queries` to `keys`, with input and output projections.

    Args:
      width: width of the queries and of the output.
      heads: number of heads; divides `width`.
      key_width: width of the keys; defaults to `width`.

    Raises:
      ValueError: if `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, key_width: int | None = None):
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads; choose a divisor")
        self.heads = heads
        key_width = key_width or width
        self.query = Linear(width, width, axes=("embed", "heads"), rngs=rngs)
        # A key bias would shift all logits of a query equally: softmax cancels it, so its gradient is always 0.
        self.key = Linear(key_width, width, axes=("embed", "heads"), bias=False, rngs=rngs)
        self.value = Linear(key_width, width, axes=("embed", "heads"), rngs=rngs)
        self.out = Linear(width, width, axes=("heads", "embed"), rngs=rngs)

    def __call__(self, queries: Tokens, keys: Tokens) -> Float[Array, "batch queries width"]:
        """Returns the attention output; 0 for queries without a visible key, if `keys` is not `queries`."""

        def split_heads(x):
            x = x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
            return shard(x, "batch", "tokens", "heads", "none")

        query = split_heads(self.query(queries.values))
        key, value = split_heads(self.key(keys.values)), split_heads(self.value(keys.values))
        segments = visible_segments(queries, keys)
        mixed = attend(query, key, value, *segments)
        out = self.out(mixed.reshape(*queries.values.shape[:-1], -1))
        if keys is not queries:
            # Zero the output bias for queries without a visible key. In self-attention, each token sees itself.
            out = jnp.where(same_segment(*segments).any(axis=-1, keepdims=True), out, 0)
        return shard(out, "batch", "tokens", "width")
