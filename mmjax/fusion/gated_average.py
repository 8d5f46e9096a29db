"""Gated late-fusion baseline: an input-dependent weighted average of the modalities.

After Arevalo et al., Gated Multimodal Units (2017), with a softmax over the modalities that are present.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.fusion.names import FUSED
from mmjax.layers import LayerNorm, Linear, Precision, Randomness, mean_pool
from mmjax.layers.attention.softmax import MASKED_LOGIT
from mmjax.tokens import Tokens


class GatedAverage(nnx.Module):
    """Softmax-gated average of mean-pooled, projected modalities; absent modalities have weight 0."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `GatedAverage`.

        Attributes:
          width: width of the fused token.
        """

        width: Count = 256

    def __init__(self, config: Config, widths: dict[str, int], *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.names = precision.dtype, tuple(widths)
        self.maps = nnx.Dict({name: Linear(widths[name], config.width, rngs=rngs) for name in widths})
        self.gate = Linear(sum(widths.values()), len(widths), rngs=rngs)
        self.norm = LayerNorm(config.width)
        self.out = Linear(config.width, config.width, rngs=rngs)
        self.widths = {**widths, FUSED: config.width}

    def __call__(self, tokens: dict[str, Tokens], rng: Randomness | None) -> dict[str, Tokens]:
        """Returns `tokens` unchanged, plus one fused token per example."""
        pooled = {name: mean_pool(tokens[name]).astype(self.dtype) for name in self.names}
        present = jnp.stack([tokens[name].present for name in self.names], axis=-1)
        logits = self.gate(jnp.concatenate(list(pooled.values()), axis=-1)).astype(jnp.float32)
        gates = jax.nn.softmax(jnp.where(present, logits, MASKED_LOGIT), axis=-1) * present
        mapped = jnp.stack([jnp.tanh(self.maps[name](pooled[name])) for name in self.names], axis=1)
        average = jnp.einsum("bm,bmw->bw", gates.astype(self.dtype), mapped)
        average = average + self.out(jax.nn.gelu(self.norm(average)))
        return {**tokens, FUSED: Tokens.from_examples(average[:, None], next(iter(tokens.values())).slots)}
