"""Pre-activation ResNet with GroupNorm (He et al., Deep Residual Learning, 2016, and Identity Mappings, 2016).

BatchNorm would make the output of an example depend on the rest of the batch. With GroupNorm and weights of variance
1 / fan-in, ResNets train as well (Kolesnikov et al., Big Transfer, 2020).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from mmjax.config import Count, Rate
from mmjax.layers import GroupNorm, Precision, Randomness, drop_path
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class ResidualBlock(nnx.Module):
    """Pre-activation residual block: twice GroupNorm, ReLU and a 3x3 convolution, plus a shortcut.

    Args:
      inputs, outputs: number of channels.
      stride: stride of the first convolution and of the shortcut.
      padding: padding of the convolutions, see `Convolution`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, padding: str = "SAME", *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"padding": padding, "bias": False, "rngs": rngs}
        self.stride = stride
        self.first_norm = GroupNorm(inputs)
        self.first = Convolution(inputs, outputs, (3, 3), stride=(stride, stride), **options)
        self.second_norm = GroupNorm(outputs)
        self.second = Convolution(outputs, outputs, (3, 3), **options)
        projects = stride != 1 or inputs != outputs
        self.shortcut = Convolution(inputs, outputs, (1, 1), stride=(stride, stride), **options) if projects else None

    def __call__(
        self, x: jax.Array, rng: Randomness | None, drop_rate: float, mask: Bool[Array, "batch height"] | None = None
    ) -> jax.Array:
        """Applies the block to `x` [B, height, width, channels].

        Args:
          x: features.
          rng: None outside training.
          drop_rate: stochastic depth rate.
          mask: valid rows of `x`; None if all are. Invalid rows do not affect valid rows of the output.
        """
        y = jax.nn.relu(self.first_norm(x, mask))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        mask = None if mask is None else mask[:, :: self.stride]
        y = self.second(jax.nn.relu(self.second_norm(self.first(y), mask)))
        if rng is not None and drop_rate:
            y = drop_path(y, drop_rate, rng)
        return shortcut + y


def residual_stages(
    channels: int, counts: tuple[int, ...], rngs: nnx.Rngs, padding: str = "SAME"
) -> nnx.List[ResidualBlock]:
    """Builds stages of `counts[stage]` blocks; each further stage doubles the channels and halves the resolution."""
    blocks, width = [], channels
    for stage, count in enumerate(counts):
        for index in range(count):
            outputs = channels * 2**stage
            blocks.append(ResidualBlock(width, outputs, 2 if stage and index == 0 else 1, padding, rngs=rngs))
            width = outputs
    return nnx.List(blocks)


class ResNet(nnx.Module):
    """ResNet over images [B, height, width, channels]; the cells of the last feature map are the tokens."""

    example: ClassVar[InputSpec] = InputSpec((8, 8, 3), "float32", mask_rank=0)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `ResNet`.

        Attributes:
          channels: channels of the first stage; each further stage doubles the channels and halves the resolution.
          blocks: number of blocks per stage.
          stem: kernel size of the first convolution.
          stem_stride: stride of the first convolution.
          drop_path: stochastic depth rate of the last block; the rate grows linearly from 0 at the first block.
        """

        channels: Count = 64
        blocks: tuple[Count, ...] = (2, 2, 2, 2)
        stem: Count = 3
        stem_stride: Count = 1
        drop_path: Rate = 0.0

        def __post_init__(self):
            if not self.blocks:
                raise ValueError("blocks is empty; give the number of blocks per stage")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype = precision.dtype
        self.stem = Convolution(
            spec.shape[-1], config.channels, (config.stem,) * 2, stride=(config.stem_stride,) * 2, rngs=rngs
        )
        self.blocks = residual_stages(config.channels, config.blocks, rngs)
        self.width = config.channels * 2 ** (len(config.blocks) - 1)
        self.norm = GroupNorm(self.width)
        last = max(len(self.blocks) - 1, 1)
        self.drop_rates = [config.drop_path * index / last for index in range(len(self.blocks))]

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, rows * columns, width] with positions (row, column) in the last feature map."""
        x = self.stem(inputs.values.astype(self.dtype))
        for index, (block, rate) in enumerate(zip(self.blocks, self.drop_rates, strict=True)):
            x = block(x, None if rng is None else rng.fold_in(index), rate)
        x = jax.nn.relu(self.norm(x))
        batch, rows, columns, width = x.shape
        grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        positions = jnp.broadcast_to(grid.reshape(1, -1, 2), (batch, rows * columns, 2)).astype(jnp.float32)
        mask = jnp.broadcast_to(inputs.present[:, None], (batch, rows * columns))
        return Tokens.make(x.reshape(batch, -1, width), mask, positions)
