"""1-D CNN on raw waveforms (after Dai et al., Very Deep CNNs for Raw Waveforms, 2017)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mmjax.config import Count
from mmjax.layers import GroupNorm, Precision, Randomness
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class WaveformCNN(nnx.Module):
    """Strided convolutions over waveforms [B, samples]; the time steps of the last layer are the tokens."""

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `WaveformCNN`.

        Attributes:
          channels: output channels per convolution; the last entry is the token width.
          kernels: kernel size per convolution, in time steps of its input.
          strides: stride per convolution, in time steps of its input.
        """

        channels: tuple[Count, ...] = (64, 128, 128, 256)
        kernels: tuple[Count, ...] = (80, 8, 8, 4)
        strides: tuple[Count, ...] = (20, 4, 4, 2)

        def __post_init__(self):
            if not len(self.channels) == len(self.kernels) == len(self.strides) > 0:
                raise ValueError("channels, kernels and strides differ in length; give one entry each per convolution")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.width = precision.dtype, config.channels[-1]
        layers, norms, inputs = [], [], 1
        for channels, kernel, stride in zip(config.channels, config.kernels, config.strides, strict=True):
            layers.append(
                Convolution(inputs, channels, (kernel,), stride=(stride,), padding="ALIGNED", bias=False, rngs=rngs)
            )
            norms.append(GroupNorm(channels))
            inputs = channels
        self.layers, self.norms = nnx.List(layers), nnx.List(norms)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, steps, width] with positions (index)."""
        x, mask = inputs.values.astype(self.dtype)[:, :, None], inputs.mask
        for layer, norm in zip(self.layers, self.norms, strict=True):
            mask = mask[:, :: layer.stride[0]]
            x = jax.nn.relu(norm(layer(x), mask))
        return Tokens.make(x, mask)
