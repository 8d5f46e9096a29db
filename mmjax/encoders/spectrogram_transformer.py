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
    """A waveform [B, samples] with its mask, or packed chunks [R, budget, chunk], as tokens with positions (index).

    The spectrogram is made inside the step. Two convolutions over time shorten it by `reduction`. A packed chunk is as
    long as a token.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})
    packed_example: ClassVar[InputSpec] = InputSpec(
        (12, 320), "float32", mask_rank=1, details={"sample_rate": 16_000, "chunk": 320, "samples": 2400}, axes=2
    )

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
        if spec.axes and (token := self.spectrogram.hop * config.reduction) != spec.details["chunk"]:
            problem = f"chunk {spec.details['chunk']} of the packed input is not the {token} samples of a token"
            raise ValueError(f"{problem}; set chunk = {token} of the input")
        first, second = STRIDES[config.reduction]
        self.first = Convolution(config.bins, config.width, (3,), stride=(first,), rngs=rngs)
        self.second = Convolution(config.width, config.width, (3,), stride=(second,), rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        drawn = None if rng is None else rng.fold_in("spectrogram")
        tokens = self._tokens(input, drawn) if input.segments is None else self._packed_tokens(input, drawn)
        values = tokens.values + sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values), rng)

    def _tokens(self, input: Input, rng: Randomness | None) -> Tokens:
        frames, real = self.spectrogram(input, rng)
        values = jax.nn.gelu(self.first(frames.astype(self.dtype)))
        values = jax.nn.gelu(self.second(values))
        # A token is real where the first of its frames is.
        return Tokens.make(values, real[:, jnp.arange(values.shape[1]) * self.config.reduction])

    def _packed_tokens(self, input: Input, rng: Randomness | None) -> Tokens:
        """Each chunk's token by itself, of all frames that the two convolutions see for it."""
        (one, two), frames = STRIDES[self.config.reduction], self.spectrogram.frames
        # The first convolution's steps from one token's first to the last, and the frames that these see.
        before, steps = _before(-(-frames // one), two), -(-frames // one)
        start = -one * before - _before(frames, one)
        seen, first = self.spectrogram.around(input, range(start, start + 2 * one + 3), rng)
        seen = seen.astype(self.dtype)
        windows = jnp.stack([seen[:, :, one * step : one * step + 3] for step in range(3)], axis=2)
        values = jax.nn.gelu(self.first.at(windows.reshape(*windows.shape[:3], -1)))
        step = first[..., None] // one - before + jnp.arange(3)
        values = jnp.where(((step >= 0) & (step < steps))[..., None], values, 0)
        values = jax.nn.gelu(self.second.at(values.reshape(*values.shape[:2], -1)))
        mask = input.mask & (first < frames)
        return Tokens.make(values, mask, input.positions[..., :1], input.segments, input.slots)


STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4)}


def _before(length: int, stride: int) -> int:
    """The zeros that a convolution of kernel 3 with padding "SAME" puts before its input."""
    return max((-(-length // stride) - 1) * stride + 3 - length, 0) // 2
