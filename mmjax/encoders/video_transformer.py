"""A Transformer over tubelets of a clip (Arnab et al., ViViT, 2021), all of space and time together."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class VideoTransformer(nnx.Module):
    """A clip [B, frames, height, width, channels] with its mask [B, frames], as tokens of tubelets.

    Positions are (time, row, column). A tubelet is a patch of several frames one behind the other; it is real where any
    of its frames is.
    """

    example: ClassVar[InputSpec] = InputSpec((4, 8, 8, 3), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes.

        Attributes:
          patch: side of a tubelet in pixels.
          tubelet: its length in frames.
        """

        patch: Count = 16
        tubelet: Count = 2

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        frames, height, width, channels = spec.shape
        for name, size, sides in (("tubelet", config.tubelet, (frames,)), ("patch", config.patch, (height, width))):
            if any(side % size for side in sides):
                shape = " x ".join(map(str, (frames, height, width)))
                raise ValueError(f"{name} {size} does not divide the clip of {shape}; choose one that does")
        self.tubelet, self.dtype, self.width = config.tubelet, precision.dtype, config.width
        kernel = (config.tubelet, config.patch, config.patch)
        self.patches = Convolution(channels, config.width, kernel, stride=kernel, padding="VALID", rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        patches = self.patches(input.values.astype(self.dtype))
        batch, *counts, width = patches.shape
        places = jnp.stack(jnp.meshgrid(*map(jnp.arange, counts), indexing="ij"), axis=-1).reshape(1, -1, 3)
        positions = jnp.broadcast_to(places, (batch, *places.shape[1:])).astype(jnp.float32)
        values = patches.reshape(batch, -1, width) + sincos_positions(positions, width).astype(self.dtype)
        real = input.mask.reshape(batch, counts[0], self.tubelet).any(axis=-1)
        mask = jnp.repeat(real, counts[1] * counts[2], axis=1)
        return self.trunk(Tokens.make(values, mask, positions), rng)
