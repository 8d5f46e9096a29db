"""Video Transformer with joint space-time attention over tubelets (ViViT model 1; Arnab et al., 2021)."""

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
    """Transformer over tubelets of clips [B, frames, height, width, channels] with a frame mask [B, frames].

    A tubelet is a patch of several consecutive frames; it is valid if any of its frames is.
    """

    example: ClassVar[InputSpec] = InputSpec((4, 8, 8, 3), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `VideoTransformer`.

        Attributes:
          patch: height and width of a tubelet in pixels.
          tubelet: length of a tubelet in frames.
        """

        patch: Count = 16
        tubelet: Count = 2

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        frames, height, width, channels = spec.shape
        for name, size, sides in (("tubelet", config.tubelet, (frames,)), ("patch", config.patch, (height, width))):
            if any(side % size for side in sides):
                shape = " x ".join(map(str, (frames, height, width)))
                raise ValueError(f"{name} {size} does not divide the clip of {shape}; choose a divisor")
        self.tubelet, self.dtype, self.width = config.tubelet, precision.dtype, config.width
        kernel = (config.tubelet, config.patch, config.patch)
        self.patches = Convolution(channels, config.width, kernel, stride=kernel, padding="VALID", rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, tubelets, width] with positions (time, row, column) in units of tubelets."""
        patches = self.patches(inputs.values.astype(self.dtype))
        batch, *grid_shape, width = patches.shape
        grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid_shape), indexing="ij"), axis=-1).reshape(1, -1, 3)
        positions = jnp.broadcast_to(grid, (batch, *grid.shape[1:])).astype(jnp.float32)
        values = patches.reshape(batch, -1, width) + sincos_positions(positions, width).astype(self.dtype)
        valid = inputs.mask.reshape(batch, grid_shape[0], self.tubelet).any(axis=-1)
        mask = jnp.repeat(valid, grid_shape[1] * grid_shape[2], axis=1)
        return self.trunk(Tokens.make(values, mask, positions), rng)
