"""ResNet over log-mel spectrograms (Hershey et al., CNN Architectures for Large-Scale Audio Classification, 2017)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mmjax.config import Count, Rate
from mmjax.encoders.resnet import residual_stages
from mmjax.layers import GroupNorm, Precision, Randomness
from mmjax.layers.convolution import Convolution
from mmjax.layers.spectrogram import Spectrogram, SpectrogramConfig
from mmjax.tokens import Input, InputSpec, Tokens


class SpectrogramResNet(nnx.Module):
    """ResNet over waveforms [B, samples]; the time steps of the last feature map are the tokens.

    The last feature map is averaged over frequency, which makes tokens nearly invariant to small pitch shifts.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SpectrogramConfig):
        """Options of `SpectrogramResNet`.

        Attributes:
          channels: channels of the first stage; each further stage doubles the channels and halves the resolution.
          blocks: number of blocks per stage.
          drop_path: stochastic depth rate of the last block; the rate grows linearly from 0 at the first block.
        """

        channels: Count = 32
        blocks: tuple[Count, ...] = (1, 1, 1)
        drop_path: Rate = 0.0

        def __post_init__(self):
            super().__post_init__()
            if not self.blocks:
                raise ValueError("blocks is empty; give the number of blocks per stage")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.spectrogram = precision.dtype, Spectrogram(config, spec)
        self.stem = Convolution(1, config.channels, (5, 5), stride=(2, 2), padding="ALIGNED", rngs=rngs)
        self.blocks = residual_stages(config.channels, config.blocks, rngs, "ALIGNED")
        self.width = config.channels * 2 ** (len(config.blocks) - 1)
        self.norm = GroupNorm(self.width)
        last = max(len(self.blocks) - 1, 1)
        self.drop_rates = [config.drop_path * index / last for index in range(len(self.blocks))]

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, steps, width] with positions (index)."""
        frames, mask = self.spectrogram(inputs, None if rng is None else rng.fold_in("spectrogram"))
        x, mask = self.stem(frames.astype(self.dtype)[..., None]), mask[:, ::2]
        for index, (block, rate) in enumerate(zip(self.blocks, self.drop_rates, strict=True)):
            x = block(x, None if rng is None else rng.fold_in(index), rate, mask)
            mask = mask[:, :: block.stride]
        return Tokens.make(jax.nn.relu(self.norm(x, mask)).mean(axis=2), mask)
