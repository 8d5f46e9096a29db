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
from mmjax.layers.spectrogram import log_mel
from mmjax.tokens import Input, InputSpec, Tokens


class SpectrogramTransformer(nnx.Module):
    """A waveform [B, samples] with its mask, as tokens with positions (stem frame).

    The spectrogram is made inside the step. Two convolutions over time shorten it by `reduction`.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes.

        Attributes:
          bins: mel bins.
          window_ms, hop_ms: length of a frame and from one to the next, in milliseconds.
          reduction: frames for one token, a product of the strides of two convolutions: 1, 2, 4, 6 or 8.
        """

        bins: Count = 80
        window_ms: Count = 25
        hop_ms: Count = 10
        reduction: Count = 2

        def __post_init__(self):
            super().__post_init__()
            if self.reduction not in STRIDES:
                raise ValueError(f"reduction {self.reduction} is not possible; choose one of {list(STRIDES)}")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.sample_rate = spec.details["sample_rate"]
        self.window = self.sample_rate * config.window_ms // 1000
        self.hop = self.sample_rate * config.hop_ms // 1000
        if self.hop < 1:
            raise ValueError(f"hop_ms {config.hop_ms} is no sample at {self.sample_rate} Hz; give more of either")
        if spec.shape[0] < self.window:
            raise ValueError(f"{spec.shape[0]} samples are less than a window of {self.window}; use longer audio")
        first, second = STRIDES[config.reduction]
        self.first = Convolution(config.bins, config.width, (3,), stride=(first,), rngs=rngs)
        self.second = Convolution(config.width, config.width, (3,), stride=(second,), rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, random: Randomness | None) -> Tokens:
        frames = log_mel(
            input.values, sample_rate=self.sample_rate, bins=self.config.bins, window=self.window, hop=self.hop
        )
        values = jax.nn.gelu(self.first(frames.astype(self.dtype)))
        values = jax.nn.gelu(self.second(values))
        # A token is real where the first sample of its frames is.
        starts = jnp.arange(values.shape[1]) * self.config.reduction * self.hop
        mask = input.mask[:, starts]
        tokens = Tokens.make(values, mask)
        values = values + sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values), random)


STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4)}
