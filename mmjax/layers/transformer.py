"""The Transformer trunk that several encoders share, and the shorthands for its sizes."""

from __future__ import annotations

import dataclasses

from flax import nnx

from mmjax.config import DERIVED, Derived, Rate
from mmjax.layers.block import Block
from mmjax.layers.norms import LayerNorm
from mmjax.layers.randomness import Randomness
from mmjax.layers.stack import Rematerialise, Stack
from mmjax.sharding import shard
from mmjax.tokens import Tokens

VARIANTS = {
    # name: (width, depth, heads, hidden), of An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), Scaling Vision
    # Transformers (Zhai et al., 2022) and Getting ViT in Shape (Alabdulmohsin et al., 2023).
    "mu": (32, 1, 2, 128),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "M": (512, 12, 8, 2048),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a trunk: a variant by name, or width, depth and heads; what is given beside a variant overrides it.

    Attributes:
      variant: a name in `VARIANTS`, like "S", and for a ViT its patch too, "S/16".
      width: of the tokens.
      depth: number of layers.
      heads: of each attention; they divide `width`.
      hidden: width inside the MLPs, 4 x `width` by default.
      dropout: rate on each residual branch.
      drop_path: stochastic depth, the rate at the last layer.
      rematerialise: what the backward pass computes again instead of keeping, for all layers or a list with one for
        each: "none" keeps all, "dots" the results of matrix products, "dots_except_mlp" these without the MLPs' hidden
        units, "offload" the results in the memory of the host, "full" each layer's input only.
      scan: one loop over the layers, which compiles fast whatever the depth; False unrolls it: on a CPU a step takes a
        fifth less time.
    """

    variant: str = ""
    width: Derived = DERIVED
    depth: Derived = DERIVED
    heads: Derived = DERIVED
    hidden: Derived = DERIVED
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    rematerialise: Rematerialise = "none"
    scan: bool = True

    def __post_init__(self):
        name = self.variant.partition("/")[0]
        if name and name not in VARIANTS:
            raise ValueError(
                f"unknown variant {self.variant!r}; known are {', '.join(VARIANTS)}, like 'S/16' for a ViT"
            )
        width, depth, heads, hidden = VARIANTS.get(name, (None, None, None, None))
        if self.width:
            hidden = 4 * self.width
        sizes = {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
        for field, size in sizes.items():
            if getattr(self, field) is None:
                if size is None:
                    raise ValueError(f"{field} is missing; set variant, or width, depth and heads")
                object.__setattr__(self, field, size)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads; choose other heads")


class Transformer(nnx.Module):
    """A stack of blocks and a last LayerNorm, from tokens to tokens of the same width."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        def make(rngs):
            return Block(config.width, config.heads, config.hidden, dropout=config.dropout, rngs=rngs)

        self.blocks = Stack(
            make,
            config.depth,
            rngs=rngs,
            rematerialise=config.rematerialise,
            scan=config.scan,
            drop_path=config.drop_path,
        )
        self.norm = LayerNorm(config.width)

    def __call__(self, tokens: Tokens, rng: Randomness | None) -> Tokens:
        # On a mesh that splits tokens they are split from here on.
        tokens = tokens.with_values(shard(tokens.values, "batch", "tokens", "width"))
        tokens = self.blocks(tokens, rng=rng)
        return tokens.with_values(self.norm(tokens.values))
