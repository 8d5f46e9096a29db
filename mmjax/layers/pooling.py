"""From many tokens to one vector an example."""

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
    """The mean of each example's real tokens, in float32; 0 for an example without any."""
    values = jnp.where(tokens.mask[..., None], tokens.values, 0).astype(jnp.float32)
    if tokens.slots == 1:
        total = values.sum(axis=1)
        count = tokens.mask.sum(axis=1, dtype=jnp.float32)
    else:
        members = tokens.members.astype(jnp.float32)
        # Products with 0 and 1 are exact, unless the accelerator rounds what it multiplies.
        total = jnp.einsum("ren,rnw->rew", members, values, precision="highest").reshape(-1, tokens.width)
        count = members.sum(axis=2).reshape(-1)
    return total / jnp.maximum(count, 1.0)[:, None]


def first_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """The first real token, in float32, where a class token stands; 0 for an example without any."""
    return _pick(tokens, tokens.members.argmax(axis=2))


def last_pool(tokens: Tokens) -> Float[Array, "batch width"]:
    """The last real token, in float32, where the end of a sentence stands; 0 for an example without any."""
    return _pick(tokens, tokens.mask.shape[1] - 1 - tokens.members[:, :, ::-1].argmax(axis=2))


def _pick(tokens: Tokens, index: Int[Array, "rows slots"]) -> Float[Array, "batch width"]:
    picked = jnp.take_along_axis(tokens.values, index[:, :, None], axis=1).reshape(-1, tokens.width)
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
        query = self.query[...].astype(tokens.values.dtype)
        # The query of an example is in its slot, so it reads that example's tokens alone.
        reader = Tokens.of_examples(
            jnp.broadcast_to(query, (tokens.examples, *query.shape)), tokens.slots, tokens.present
        )
        pooled = self.attention(reader, tokens)
        pooled = pooled + self.mlp(self.norm(pooled))
        pooled = pooled.reshape(-1, tokens.width)
        return jnp.where(tokens.present[:, None], pooled.astype(jnp.float32), 0)
