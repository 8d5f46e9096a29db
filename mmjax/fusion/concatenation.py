"""Late-fusion baseline: an MLP over the concatenated, mean-pooled modalities."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.fusion.names import FUSED
from mmjax.layers import Linear, Precision, Randomness, dropout, mean_pool
from mmjax.tokens import Tokens


class Concatenation(nnx.Module):
    """MLP over mean-pooled modalities and their presence flags; an absent modality is a zero vector with flag 0."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Concatenation`.

        Attributes:
          width: width of the fused token.
          hidden: hidden width of the MLP, 4 x `width` by default.
          dropout: dropout rate of the hidden layer of the MLP.
        """

        width: Count = 256
        hidden: Count | None = None
        dropout: Rate = 0.0

    def __init__(self, config: Config, widths: dict[str, int], *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.dropout, self.names = precision.dtype, config.dropout, tuple(widths)
        hidden = config.hidden or 4 * config.width
        self.up = Linear(sum(widths.values()) + len(widths), hidden, axes=("embed", "hidden"), rngs=rngs)
        self.down = Linear(hidden, config.width, axes=("hidden", "embed"), rngs=rngs)
        self.widths = {**widths, FUSED: config.width}

    def __call__(self, tokens: dict[str, Tokens], rng: Randomness | None) -> dict[str, Tokens]:
        """Returns `tokens` unchanged, plus one fused token per example."""
        pooled: list[Any] = [mean_pool(tokens[name]) for name in self.names]
        flags = [tokens[name].present[:, None].astype(jnp.float32) for name in self.names]
        hidden = jax.nn.gelu(self.up(jnp.concatenate(pooled + flags, axis=-1).astype(self.dtype)))
        if rng is not None:
            hidden = dropout(hidden, self.dropout, rng.fold_in(FUSED))
        fused = self.down(hidden)[:, None]
        return {**tokens, FUSED: Tokens.from_examples(fused, next(iter(tokens.values())).slots)}
