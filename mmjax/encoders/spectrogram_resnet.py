"""A residual network over a log-mel spectrogram (as in Hershey et al., CNN Architectures for Audio, 2017)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.encoders.resnet import ResidualBlock
from mmjax.layers import GroupNorm, Precision, Randomness
from mmjax.layers.convolution import Convolution
from mmjax.layers.spectrogram import Spectrogram, SpectrogramConfig
from mmjax.tokens import Input, InputSpec, Tokens


class SpectrogramResNet(nnx.Module):
    """A waveform [B, samples] with its mask, as one token for each step in time of the last map.

    Frequencies are averaged at the end, so that the same sound a little higher or lower gives nearly the same token.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SpectrogramConfig):
        """Sizes, and the spectrogram.

        Attributes:
          channels: of the first stage; each next stage has twice as many and half the resolution.
          blocks: number of blocks in each stage.
          drop_path: stochastic depth, the rate at the last block.
        """

        channels: Count = 32
        blocks: tuple[Count, ...] = (1, 1, 1)
        drop_path: Rate = 0.0

        def __post_init__(self):
            super().__post_init__()
            if not self.blocks:
                raise ValueError("blocks is empty; give the number of blocks of each stage")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.spectrogram = precision.dtype, Spectrogram(config, spec)
        self.stem = Convolution(1, config.channels, (5, 5), stride=(2, 2), rngs=rngs)
        blocks, width, self.reduction = [], config.channels, 2
        for stage, count in enumerate(config.blocks):
            for number in range(count):
                outputs = config.channels * 2**stage
                stride = 2 if stage and number == 0 else 1
                blocks.append(ResidualBlock(width, outputs, stride, rngs=rngs))
                width, self.reduction = outputs, self.reduction * stride
        self.blocks = nnx.List(blocks)
        self.norm = GroupNorm(width)
        self.drops = [config.drop_path * number / max(len(blocks) - 1, 1) for number in range(len(blocks))]
        self.width = width

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        frames, real = self.spectrogram(input, None if rng is None else rng.fold_in("spectrogram"))
        x = self.stem(frames.astype(self.dtype)[..., None])
        for number, (block, drop) in enumerate(zip(self.blocks, self.drops, strict=True)):
            x = block(x, None if rng is None else rng.fold_in(number), drop)
        x = jax.nn.relu(self.norm(x)).mean(axis=2)
        return Tokens.make(x, real[:, jnp.arange(x.shape[1]) * self.reduction])
