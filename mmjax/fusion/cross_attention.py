"""Cross-attention between modalities, and learned queries that read the result out.

After Lu et al., ViLBERT (2019), for streams that query each other, and Jaegle et al., Perceiver (2021), for the
readout.
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
    """`queries` read each of `names` through an attention of its own, then an MLP, all added to the queries.

    With one softmax over the tokens of all modalities, those with many tokens would drown the others at first, and an
    absent one would change how the others are weighted. Here it adds exactly 0.
    """

    def __init__(self, names: tuple[str, ...], width: int, heads: int, hidden: int, *, dropout: float, rngs: nnx.Rngs):
        self.names, self.dropout = names, dropout
        self.query_norm, self.mlp_norm = LayerNorm(width), LayerNorm(width)
        self.key_norms = nnx.Dict({name: LayerNorm(width) for name in names})
        self.attentions = nnx.Dict({name: Attention(width, heads, rngs=rngs) for name in names})
        self.mlp = MLP(width, hidden, rngs=rngs)

    def __call__(
        self, queries: Tokens, keys: dict[str, Tokens], rng: Randomness | None, drop: float | jax.Array
    ) -> Tokens:
        def add(tokens: Tokens, branch: jax.Array, place: str) -> Tokens:
            if rng is not None:
                draws = rng.among(tokens)
                branch = dropout(branch, self.dropout, draws.fold_in(place))
                branch = drop_path(branch, drop, draws.fold_in(place + "/path"))
            return dataclasses.replace(tokens, values=tokens.values + branch)

        def normed(tokens: Tokens, norm: LayerNorm) -> Tokens:
            return dataclasses.replace(tokens, values=norm(tokens.values))

        asking = normed(queries, self.query_norm)
        read = [self.attentions[name](asking, normed(keys[name], self.key_norms[name])) for name in self.names]
        queries = add(queries, sum(read[1:], start=read[0]), "attention")
        return add(queries, self.mlp(self.mlp_norm(queries.values)), "mlp")


class FusionLayer(nnx.Module):
    """One round: each modality reads those it queries, all at once, then the learned queries read every modality."""

    def __init__(self, names: tuple[str, ...], pairs: dict[str, tuple[str, ...]], make_cross, make_self):
        self.pairs = pairs
        self.streams = nnx.Dict({name: make_cross(others) for name, others in pairs.items()})
        self.readout = make_cross(names)
        self.latent_block = make_self()

    def __call__(self, carry: tuple[dict[str, Tokens], Tokens], rng: Randomness | None, drop) -> tuple:
        tokens, latents = carry
        draws = {name: None if rng is None else rng.fold_in(name) for name in (*self.pairs, FUSED, "latent_block")}
        read = dict(tokens)
        for name in self.pairs:
            read[name] = self.streams[name](tokens[name], tokens, draws[name], drop)
        latents = self.readout(latents, read, draws[FUSED], drop)
        return read, self.latent_block(latents, draws["latent_block"], drop)


class CrossAttention(nnx.Module):
    """Modalities query each other for `depth` rounds; learned queries read them out after each round.

    An example without any modality gets the answer of the learned queries alone.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes.

        Attributes:
          width, depth, heads: of the rounds.
          hidden: width inside the MLPs, 4 x `width` by default.
          queries: number of learned queries, the length of what is read out.
          pairs: which modalities each modality queries, {"text": ["image", "audio"]}; those not named stay as they are.
            By default every modality queries all others.
          dropout, drop_path, rematerialise, scan: as for a Transformer encoder.
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
                raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose other heads")

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
        self.entrances = nnx.Dict({name: Linear(widths[name], width, rngs=rngs) for name in widths})
        # Small, so that what is read outweighs them in the norm of the MLP from the first step on.
        queries = jax.random.normal(rngs.params(), (config.queries, width)) * 0.02
        self.queries = parameter(queries, "none", "embed")

        def make(rngs):
            def cross(names):
                return CrossBlock(names, width, config.heads, hidden, dropout=config.dropout, rngs=rngs)

            def latent_block():
                return Block(width, config.heads, hidden, dropout=config.dropout, rngs=rngs)

            return FusionLayer(tuple(widths), pairs, cross, latent_block)

        self.rounds = Stack(
            make,
            config.depth,
            rngs=rngs,
            rematerialise=config.rematerialise,
            scan=config.scan,
            drop_path=config.drop_path,
        )
        # One norm for all results: a task need not read each of them, and every parameter should have a gradient.
        self.norm = LayerNorm(width)
        self.widths = dict.fromkeys((*widths, FUSED), width)

    def __call__(self, tokens: dict[str, Tokens], rng: Randomness | None) -> dict[str, Tokens]:
        entered = {
            name: tokens[name].with_values(entrance(tokens[name].values)) for name, entrance in self.entrances.items()
        }
        like = next(iter(tokens.values()))
        queries = jnp.broadcast_to(self.queries[...].astype(self.dtype), (like.examples, *self.queries.shape))
        latents = Tokens.of_examples(queries, like.slots)
        entered, latents = self.rounds((entered, latents), rng=rng)
        results = {**entered, FUSED: latents}
        return {name: result.with_values(self.norm(result.values)) for name, result in results.items()}
