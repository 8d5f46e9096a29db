"""Pooling: reduces the tokens of each example to one vector."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.layers.attention import Attention
from mmjax.layers.mlp import MLP
from mmjax.layers.norms import LayerNorm
from mmjax.sharding import parameter
from mmjax.tokens import Tokens


def mean_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """Mean of the real tokens of each example, float32; 0 for examples without tokens."""
    values = jnp.where(tokens.mask[..., None], tokens.values, 0).astype(jnp.float32)
    if tokens.slots == 1:
        total = values.sum(axis=1)
        count = tokens.mask.sum(axis=1, dtype=jnp.float32)
    else:
        members = tokens.members.astype(jnp.float32)
        # Precision "highest", since accelerators may round the operands of a float32 matmul to bfloat16.
        total = jnp.einsum("ren,rnw->rew", members, values, precision="highest").reshape(-1, tokens.width)
        count = members.sum(axis=2).reshape(-1)
    return total / jnp.maximum(count, 1.0)[:, None]


def first_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """First real token of each example (the class token of a ViT), float32; 0 for examples without tokens."""
    return _take(tokens, tokens.members.argmax(axis=2))


def last_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """Last real token of each example (end of text), float32; 0 for examples without tokens."""
    return _take(tokens, tokens.mask.shape[1] - 1 - tokens.members[:, :, ::-1].argmax(axis=2))


def _take(tokens: Tokens, index: Int[Array, "rows slots"]) -> Float[Array, "batch width"]:
    """Gathers one token per slot; `index` is the position in the row."""
    taken = jnp.take_along_axis(tokens.values, index[:, :, None], axis=1).reshape(-1, tokens.width)
    return jnp.where(tokens.present[:, None], taken.astype(jnp.float32), 0)


class AttentionPooling(nnx.Module):
    """Multi-head attention pooling with one learned query (Zhai et al., Scaling Vision Transformers, 2022).

    Args:
      width: width of the tokens and of the output.
      heads: number of attention heads.
      hidden: hidden width of the MLP after the attention.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs):
        query = jax.random.normal(rngs.params(), (1, width)) * width**-0.5
        self.query = parameter(query, "none", "embed")
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm = LayerNorm(width)
        self.mlp = MLP(width, hidden, rngs=rngs)

    def __call__(self, tokens: Tokens) -> Float[Array, "batch width"]:
        """Returns one float32 vector per example; 0 for examples without tokens."""
        query = self.query[...].astype(tokens.values.dtype)
        # One query per slot, so that it attends to the tokens of its own example only.
        queries = Tokens.from_examples(
            jnp.broadcast_to(query, (tokens.examples, *query.shape)), tokens.slots, tokens.present
        )
        pooled = self.attention(queries, tokens)
        pooled = pooled + self.mlp(self.norm(pooled))
        pooled = pooled.reshape(-1, tokens.width)
        return jnp.where(tokens.present[:, None], pooled.astype(jnp.float32), 0)
