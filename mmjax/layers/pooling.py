"""From many tokens to one vector an example."""

from __future__ import annotations

import dataclasses

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
    """The mean of the real tokens, in float32; 0 for an example without any."""
    values = jnp.where(tokens.mask[..., None], tokens.values, 0).astype(jnp.float32)
    count = tokens.mask.sum(axis=1, dtype=jnp.float32)
    return values.sum(axis=1) / jnp.maximum(count, 1.0)[:, None]


def first_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """The first real token, in float32, where a class token stands; 0 for an example without any."""
    return _pick(tokens, tokens.mask.argmax(axis=1))


def last_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """The last real token, in float32, where the end of a sentence stands; 0 for an example without any."""
    return _pick(tokens, tokens.mask.shape[1] - 1 - tokens.mask[:, ::-1].argmax(axis=1))


def _pick(tokens: Tokens, index: Int[Array, " batch"]) -> Float[Array, "batch width"]:
    picked = jnp.take_along_axis(tokens.values, index[:, None, None], axis=1)[:, 0]
    return jnp.where(tokens.present[:, None], picked.astype(jnp.float32), 0)


class AttentionPooling(nnx.Module):
    """A learned query reads all tokens, then an MLP (MAP head of Scaling Vision Transformers, Zhai et al., 2022)."""

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs):
        query = jax.random.normal(rngs.params(), (1, width)) * width**-0.5
        self.query = parameter(query, "none", "embed")
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm = LayerNorm(width)
        self.mlp = MLP(width, hidden, rngs=rngs)

    def __call__(self, tokens: Tokens) -> Float[Array, "batch width"]:
        """0 for an example without any token."""
        batch = tokens.values.shape[0]
        query = jnp.broadcast_to(self.query[...].astype(tokens.values.dtype), (batch, 1, tokens.width))
        # One segment: pooling of packed examples would need a query for each.
        reader = Tokens.make(query, tokens.present[:, None])
        tokens = dataclasses.replace(tokens, segments=jnp.zeros_like(tokens.segments))
        pooled = self.attention(reader, tokens)
        pooled = pooled + self.mlp(self.norm(pooled))
        return jnp.where(tokens.present[:, None], pooled[:, 0].astype(jnp.float32), 0)
