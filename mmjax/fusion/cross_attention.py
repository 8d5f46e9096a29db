"""Cross-attention between modalities, with learned latent queries as readout.

The cross-attention between modalities follows Lu et al., ViLBERT (2019); the readout follows Jaegle et al., Perceiver
(2021).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.errors import UserError, nearest
from mmjax.fusion.names import FUSED
from mmjax.layers import MLP, Attention, Block, LayerNorm, Linear, Precision, Randomness, Stack, drop_path, dropout
from mmjax.layers.stack import Rematerialise
from mmjax.sharding import parameter
from mmjax.tokens import Tokens


class CrossBlock(nnx.Module):
    """Pre-norm block: the sum of one cross-attention per modality, then an MLP, both with a residual connection.

    A single softmax over the tokens of all modalities would initially be dominated by modalities with many tokens, and
    an absent modality would change the weights of the others. With separate softmaxes, an absent modality adds exactly
    0.

    Args:
      names: modalities to attend to.
      width: token width.
      heads: number of attention heads.
      hidden: hidden width of the MLP.
      dropout: dropout rate of each residual branch.
    """

    def __init__(self, names: tuple[str, ...], width: int, heads: int, hidden: int, *, dropout: float, rngs: nnx.Rngs):
        self.names, self.dropout = names, dropout
        self.query_norm, self.mlp_norm = LayerNorm(width), LayerNorm(width)
        self.key_norms = nnx.Dict({name: LayerNorm(width) for name in names})
        self.attentions = nnx.Dict({name: Attention(width, heads, rngs=rngs) for name in names})
        self.mlp = MLP(width, hidden, rngs=rngs)

    def __call__(
        self, queries: Tokens, keys: dict[str, Tokens], rng: Randomness | None, drop_rate: float | jax.Array
    ) -> Tokens:
        """Updates `queries` from `keys`; `drop_rate` is the stochastic depth rate, `rng` is None outside training."""

        def add(tokens: Tokens, branch: jax.Array, name: str) -> Tokens:
            if rng is not None:
                token_rng = rng.for_tokens(tokens)
                branch = dropout(branch, self.dropout, token_rng.fold_in(name))
                branch = drop_path(branch, drop_rate, token_rng.fold_in(name + "/path"))
            return dataclasses.replace(tokens, values=tokens.values + branch)

        def normalise(tokens: Tokens, norm: LayerNorm) -> Tokens:
            return dataclasses.replace(tokens, values=norm(tokens.values))

        normed = normalise(queries, self.query_norm)
        mixed = [self.attentions[name](normed, normalise(keys[name], self.key_norms[name])) for name in self.names]
        queries = add(queries, sum(mixed[1:], start=mixed[0]), "attention")
        return add(queries, self.mlp(self.mlp_norm(queries.values)), "mlp")


class FusionLayer(nnx.Module):
    """One round: each modality attends to its paired modalities in parallel, then the latents attend to all modalities.

    Args:
      names: all modalities.
      pairs: {modality: modalities that it attends to}; other modalities pass through unchanged.
      make_cross: builds a `CrossBlock` that attends to the given modalities.
      make_self: builds the self-attention block of the latents.
    """

    def __init__(self, names: tuple[str, ...], pairs: dict[str, tuple[str, ...]], make_cross, make_self):
        self.pairs = pairs
        self.streams = nnx.Dict({name: make_cross(others) for name, others in pairs.items()})
        self.readout = make_cross(names)
        self.latent_block = make_self()

    def __call__(self, carry: tuple[dict[str, Tokens], Tokens], rng: Randomness | None, drop_rate) -> tuple:
        """Updates the carry ({modality: Tokens}, latents)."""
        tokens, latents = carry

        def fold_in(key: str) -> Randomness | None:
            return None if rng is None else rng.fold_in(key)

        updated = dict(tokens)
        for name in self.pairs:
            # The prefix prevents collisions between modality names and the other keys.
            updated[name] = self.streams[name](tokens[name], tokens, fold_in("streams." + name), drop_rate)
        latents = self.readout(latents, updated, fold_in(FUSED), drop_rate)
        return updated, self.latent_block(latents, fold_in("latent_block"), drop_rate)


class CrossAttention(nnx.Module):
    """Rounds of cross-attention between modalities; learned latent queries attend to all modalities in each round.

    For an example without any modality, the fused tokens depend on the learned queries alone.

    Raises:
      UserError: if `pairs` names an unknown encoder.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `CrossAttention`.

        Attributes:
          width: token width of all streams.
          depth: number of rounds.
          heads: number of attention heads; divides `width`.
          hidden: hidden width of the MLPs, 4 x `width` by default.
          queries: number of learned queries, which is the number of fused tokens.
          pairs: modalities that each modality attends to, {"text": ["image", "audio"]}; modalities that are not listed
            pass through unchanged. By default each attends to all others.
          dropout, drop_path, rematerialise, scan: as for Transformer encoders.
        """

        width: Count = 256
        depth: Count = 2
        heads: Count = 4
        hidden: Count | None = None
        queries: Count = 8
        pairs: dict[str, tuple[str, ...]] | None = None
        dropout: Rate = 0.0
        drop_path: Rate = 0.0
        rematerialise: Rematerialise = "none"
        scan: bool = True

        def __post_init__(self):
            if self.width % self.heads:
                raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; choose a divisor")

    def __init__(self, config: Config, widths: dict[str, int], *, precision: Precision, rngs: nnx.Rngs):
        width, hidden = config.width, config.hidden or 4 * config.width
        self.dtype = precision.dtype
        pairs = config.pairs
        if pairs is None:
            pairs = {name: tuple(other for other in widths if other != name) for name in widths}
        for name in (*pairs, *(other for others in pairs.values() for other in others)):
            if name not in widths:
                raise UserError("model.fusion.pairs", f"no encoder is named {name!r}", nearest(name, widths))
        pairs = {name: tuple(others) for name, others in pairs.items() if others}
        self.input_projections = nnx.Dict({name: Linear(widths[name], width, rngs=rngs) for name in widths})
        # Small initial queries, so that the attention output dominates the residual stream from the first step.
        queries = jax.random.normal(rngs.params(), (config.queries, width)) * 0.02
        self.queries = parameter(queries, "none", "embed")

        def make(rngs):
            def make_cross(names):
                return CrossBlock(names, width, config.heads, hidden, dropout=config.dropout, rngs=rngs)

            def make_self():
                return Block(width, config.heads, hidden, dropout=config.dropout, rngs=rngs)

            return FusionLayer(tuple(widths), pairs, make_cross, make_self)

        self.rounds = Stack(
            make,
            config.depth,
            rngs=rngs,
            rematerialise=config.rematerialise,
            scan=config.scan,
            drop_path=config.drop_path,
        )
        # All outputs share one norm: tasks may skip some outputs, and every parameter should get a gradient.
        self.norm = LayerNorm(width)
        self.widths = dict.fromkeys((*widths, FUSED), width)

    def __call__(self, tokens: dict[str, Tokens], rng: Randomness | None) -> dict[str, Tokens]:
        """Returns the updated tokens of each modality and `config.queries` fused tokens per example."""
        streams = {
            name: tokens[name].with_values(project(tokens[name].values))
            for name, project in self.input_projections.items()
        }
        template = next(iter(tokens.values()))
        queries = jnp.broadcast_to(self.queries[...].astype(self.dtype), (template.examples, *self.queries.shape))
        latents = Tokens.from_examples(queries, template.slots)
        streams, latents = self.rounds((streams, latents), rng=rng)
        outputs = {**streams, FUSED: latents}
        return {name: output.with_values(self.norm(output.values)) for name, output in outputs.items()}
