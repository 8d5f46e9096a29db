"""Pre-norm Transformer block."""

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
    """Pre-norm Transformer block: self-attention and MLP, each with a residual connection.

    Masked tokens of the output are finite but not zero. Attention ignores them, so zeroing them once after the last
    layer gives the same results and gradients as zeroing after each layer.

    Args:
      width: token width.
      heads: number of attention heads.
      hidden: hidden width of the MLP.
      dropout: dropout rate of each residual branch.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float = 0.0, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(width)
        self.attention = Attention(width, heads, rngs=rngs)
        self.mlp_norm = LayerNorm(width)
        self.mlp = MLP(width, hidden, rngs=rngs)
        self.dropout = dropout

    def __call__(self, tokens: Tokens, rng: Randomness | None, drop_rate: float | jax.Array = 0.0) -> Tokens:
        """Applies the block; `drop_rate` is the stochastic depth rate, `rng` is None outside training."""

        def add(tokens: Tokens, branch: jax.Array, name: str) -> Tokens:
            if rng is not None:
                token_rng = rng.for_tokens(tokens)
                branch = dropout(branch, self.dropout, token_rng.fold_in(name))
                if not (isinstance(drop_rate, float) and drop_rate == 0.0):
                    branch = drop_path(branch, drop_rate, token_rng.fold_in(name + "/path"))
            return dataclasses.replace(tokens, values=tokens.values + branch)

        normed = dataclasses.replace(tokens, values=self.attention_norm(tokens.values))
        tokens = add(tokens, self.attention(normed, normed), "attention")
        return add(tokens, self.mlp(self.mlp_norm(tokens.values)), "mlp")
