"""A Transformer over a log-mel spectrogram after a convolutional stem (as in Radford et al., Whisper, 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.layers.spectrogram import Spectrogram, SpectrogramConfig
from mmjax.tokens import Input, InputSpec, Tokens


class SpectrogramTransformer(nnx.Module):
    """A waveform [B, samples] with its mask, as tokens with positions (stem frame).

    The spectrogram is made inside the step. Two convolutions over time shorten it by `reduction`.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SpectrogramConfig, TransformerConfig):
        """Sizes of the trunk and the spectrogram.

        Attributes:
          reduction: frames for one token, a product of the strides of two convolutions: 1, 2, 4, 6 or 8.
        """

        reduction: Count = 2

        def __post_init__(self):
            SpectrogramConfig.__post_init__(self)
            TransformerConfig.__post_init__(self)
            if self.reduction not in STRIDES:
                raise ValueError(f"reduction {self.reduction} is not possible; choose one of {list(STRIDES)}")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.spectrogram = Spectrogram(config, spec)
        first, second = STRIDES[config.reduction]
        self.first = Convolution(config.bins, config.width, (3,), stride=(first,), rngs=rngs)
        self.second = Convolution(config.width, config.width, (3,), stride=(second,), rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, random: Randomness | None) -> Tokens:
        frames, real = self.spectrogram(input, None if random is None else random.fold("spectrogram"))
        values = jax.nn.gelu(self.first(frames.astype(self.dtype)))
        values = jax.nn.gelu(self.second(values))
        # A token is real where the first of its frames is.
        mask = real[:, jnp.arange(values.shape[1]) * self.config.reduction]
        tokens = Tokens.make(values, mask)
        values = values + sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values), random)


STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4)}
