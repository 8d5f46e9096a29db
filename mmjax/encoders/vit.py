"""Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class ViT(nnx.Module):
    """Patches of an image [B, height, width, channels], as tokens with positions (row, column)."""

    example: ClassVar[InputSpec] = InputSpec((8, 8, 3), "float32", mask_rank=0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes, as in `variant="S/16"`, and the patches.

        Attributes:
          patch: side of a patch in pixels, the number after the "/" of the variant by default.
          stride: pixels from one patch to the next; less than `patch` makes them overlap. `patch` by default.
        """

        patch: Count | None = None
        stride: Count | None = None

        def __post_init__(self):
            super().__post_init__()
            suffix = self.variant.partition("/")[2]
            if suffix and not suffix.isdigit():
                raise ValueError(f"variant {self.variant!r} has no number after its '/'; write it like 'S/16'")
            if self.patch is None:
                if not suffix:
                    raise ValueError("patch is missing; set patch, or a variant with one, like 'S/16'")
                object.__setattr__(self, "patch", int(suffix))
            if self.stride is None:
                object.__setattr__(self, "stride", self.patch)

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        height, width, channels = spec.shape
        if min(height, width) < config.patch:
            raise ValueError(f"patch {config.patch} exceeds the image {height}x{width}; make it smaller")
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.patches = Convolution(
            channels, config.width, (config.patch,) * 2, stride=(config.stride,) * 2, padding="VALID", rngs=rngs
        )
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, random: Randomness | None) -> Tokens:
        patches = self.patches(input.values.astype(self.dtype))
        batch, rows, columns, width = patches.shape
        places = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        positions = jnp.broadcast_to(places.reshape(1, -1, 2), (batch, rows * columns, 2)).astype(jnp.float32)
        values = patches.reshape(batch, rows * columns, width)
        values = values + sincos_positions(positions, width).astype(self.dtype)
        mask = jnp.broadcast_to(input.present[:, None], (batch, rows * columns))
        return self.trunk(Tokens.make(values, mask, positions), random)
