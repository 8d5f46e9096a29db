"""Transformer trunk shared by several encoders, and the table of its standard sizes."""

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
    # name: (width, depth, heads, hidden), from An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), Scaling Vision
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
    """Options of a Transformer trunk: a named variant, or width, depth and heads. Explicit sizes override the variant.

    Attributes:
      variant: key of `VARIANTS`, such as "S"; a ViT also accepts "S/16", which includes the patch size.
      width: token width.
      depth: number of layers.
      heads: number of attention heads; divides `width`.
      hidden: hidden width of the MLPs, 4 x `width` by default.
      dropout: dropout rate of each residual branch.
      drop_path: stochastic depth rate of the last layer; the rate grows linearly from 0 at the first layer.
      rematerialise: activations to save for the backward pass, one policy or a list with one per layer: "none" saves
        all, "dots" matmul outputs, "dots_except_mlp" matmul outputs except the hidden units of MLPs, "offload" matmul
        outputs in host memory, "full" layer inputs only. All else is recomputed.
      scan: run the layers as one loop, so that compile time does not grow with depth. False unrolls the loop, which
        makes a step on a CPU a fifth faster.
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
                f"unknown variant {self.variant!r}; choose one of {', '.join(VARIANTS)}, or 'S/16' for a ViT"
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
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; choose a divisor")


class Transformer(nnx.Module):
    """Stack of Transformer blocks with a final LayerNorm; maps tokens to tokens of the same width."""

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
        """Applies the blocks; `rng` is None outside training."""
        # Shard the tokens over the mesh axis `sequence` from here on.
        tokens = tokens.with_values(shard(tokens.values, "batch", "tokens", "width"))
        tokens = self.blocks(tokens, rng=rng)
        return tokens.with_values(self.norm(tokens.values))
