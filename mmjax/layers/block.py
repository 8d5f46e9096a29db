"""The pre-norm Transformer block that every Transformer encoder stacks."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from mmjax.layers.attention import Attention
from mmjax.layers.mlp import MLP
from mmjax.layers.norms import LayerNorm
from mmjax.layers.randomness import Randomness, drop_path, dropout
from mmjax.tokens import Tokens


class Block(nnx.Module):
    """Self-attention, then an MLP, each on normalised values and added to its input.

    What it returns is finite but not zero where tokens are masked: nobody sees those, and zeroing them once behind the
    last layer gives the same result and the same gradients as after each step.

    Args:
      width, heads: of the attention.
      hidden: width inside the MLP.
      dropout: rate on each branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float = 0.0, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads, rngs=rngs)
        self.mlp_norm = LayerNorm(width)
        self.mlp = MLP(width, hidden, rngs=rngs)
        self.dropout = dropout

    def __call__(self, tokens: Tokens, rng: Randomness | None, drop: float | jax.Array = 0.0) -> Tokens:
        """`drop` is the rate at which whole branches are dropped (stochastic depth)."""

        def add(tokens: Tokens, branch: jax.Array, place: str) -> Tokens:
            if rng is not None:
                draws = rng.among(tokens)
                branch = dropout(branch, self.dropout, draws.fold_in(place))
                if not (isinstance(drop, float) and drop == 0.0):
                    branch = drop_path(branch, drop, draws.fold_in(place + "/path"))
            return dataclasses.replace(tokens, values=tokens.values + branch)

        normed = dataclasses.replace(tokens, values=self.attention_norm(tokens.values))
        tokens = add(tokens, self.attention(normed, normed), "attention")
        return add(tokens, self.mlp(self.mlp_norm(tokens.values)), "mlp")
