"""Residual network (He et al., Deep Residual Learning, 2016; pre-activation form, He et al., 2016b) with GroupNorm.

BatchNorm would make an example's result depend on who else is in its batch; with GroupNorm and weights of variance
1 / fan-in these networks train as well (Kolesnikov et al., Big Transfer, 2020).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.layers import GroupNorm, Precision, Randomness, drop_path
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class ResidualBlock(nnx.Module):
    """Norm, ReLU, 3x3, twice, added to the input; the first convolution may stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.first_norm = GroupNorm(inputs)
        self.first = Convolution(inputs, outputs, (3, 3), stride=(stride, stride), bias=False, rngs=rngs)
        self.second_norm = GroupNorm(outputs)
        self.second = Convolution(outputs, outputs, (3, 3), bias=False, rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = (
            Convolution(inputs, outputs, (1, 1), stride=(stride, stride), bias=False, rngs=rngs) if changes else None
        )

    def __call__(self, x: jax.Array, rng: Randomness | None, drop: float) -> jax.Array:
        y = jax.nn.relu(self.first_norm(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.second(jax.nn.relu(self.second_norm(self.first(y))))
        if rng is not None and drop:
            y = drop_path(y, drop, rng)
        return shortcut + y


class ResNet(nnx.Module):
    """Stages of residual blocks over an image [B, height, width, channels]; the last map's cells are the tokens."""

    example: ClassVar[InputSpec] = InputSpec((8, 8, 3), "float32", mask_rank=0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Sizes.

        Attributes:
          channels: of the first stage; each next stage has twice as many and half the resolution.
          blocks: number of blocks in each stage.
          stem, stem_stride: side and stride of the first convolution.
          drop_path: stochastic depth, the rate at the last block.
        """

        channels: Count = 64
        blocks: tuple[Count, ...] = (2, 2, 2, 2)
        stem: Count = 3
        stem_stride: Count = 1
        drop_path: Rate = 0.0

        def __post_init__(self):
            if not self.blocks:
                raise ValueError("blocks is empty; give the number of blocks of each stage")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype = precision.dtype
        self.stem = Convolution(
            spec.shape[-1], config.channels, (config.stem,) * 2, stride=(config.stem_stride,) * 2, rngs=rngs
        )
        blocks, width = [], config.channels
        for stage, count in enumerate(config.blocks):
            for number in range(count):
                outputs = config.channels * 2**stage
                stride = 2 if stage and number == 0 else 1
                blocks.append(ResidualBlock(width, outputs, stride, rngs=rngs))
                width = outputs
        self.blocks = nnx.List(blocks)
        self.norm = GroupNorm(width)
        self.drops = [config.drop_path * number / max(len(blocks) - 1, 1) for number in range(len(blocks))]
        self.width = width

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        x = self.stem(input.values.astype(self.dtype))
        for number, (block, drop) in enumerate(zip(self.blocks, self.drops, strict=True)):
            x = block(x, None if rng is None else rng.fold_in(number), drop)
        x = jax.nn.relu(self.norm(x))
        batch, rows, columns, width = x.shape
        places = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        positions = jnp.broadcast_to(places.reshape(1, -1, 2), (batch, rows * columns, 2)).astype(jnp.float32)
        mask = jnp.broadcast_to(input.present[:, None], (batch, rows * columns))
        return Tokens.make(x.reshape(batch, -1, width), mask, positions)
