"""Transformer over log-mel spectrograms with a convolutional stem (as in Radford et al., Whisper, 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution, left_padding
from mmjax.layers.spectrogram import Spectrogram, SpectrogramConfig
from mmjax.tokens import Input, InputSpec, Tokens


class SpectrogramTransformer(nnx.Module):
    """Transformer over waveforms [B, samples], or packed chunks [R, budget, chunk]; tokens have positions (index).

    The spectrogram is computed inside the step. Two convolutions over time shorten it by `reduction`. A packed chunk
    has as many samples as one token covers, `reduction` hops.
    """

    example: ClassVar[InputSpec] = InputSpec((2400,), "float32", mask_rank=1, details={"sample_rate": 16_000})
    packed_example: ClassVar[InputSpec] = InputSpec(
        (12, 320), "float32", mask_rank=1, details={"sample_rate": 16_000, "chunk": 320, "samples": 2400}, axes=2
    )

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SpectrogramConfig, TransformerConfig):
        """Options of `SpectrogramTransformer`.

        Attributes:
          reduction: frames per token, the product of the strides of the two convolutions: 1, 2, 4, 6 or 8.
        """

        reduction: Count = 2

        def __post_init__(self):
            SpectrogramConfig.__post_init__(self)
            TransformerConfig.__post_init__(self)
            if self.reduction not in STRIDES:
                raise ValueError(f"reduction {self.reduction} is not supported; choose one of {list(STRIDES)}")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.spectrogram = Spectrogram(config, spec)
        if spec.axes and (samples := self.spectrogram.hop * config.reduction) != spec.details["chunk"]:
            problem = f"chunk {spec.details['chunk']} of the packed input differs from the {samples} samples of a token"
            raise ValueError(f"{problem}; set chunk = {samples} of the input")
        first, second = STRIDES[config.reduction]
        self.first = Convolution(config.bins, config.width, (3,), stride=(first,), padding="ALIGNED", rngs=rngs)
        self.second = Convolution(config.width, config.width, (3,), stride=(second,), padding="ALIGNED", rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, ceil(frames / reduction), width], or [R, budget, width] if packed."""
        frame_rng = None if rng is None else rng.fold_in("spectrogram")
        tokens = (self._tokens if inputs.segments is None else self._packed_tokens)(inputs, frame_rng)
        values = tokens.values + sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values), rng)

    def _tokens(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Tokens of waveforms [B, samples], before positional embeddings."""
        frames, mask = self.spectrogram(inputs, rng)
        # A step is valid if its first frame is; zero the others, as the padding of the next convolution is.
        (stride, second_stride) = STRIDES[self.config.reduction]
        values, mask = jax.nn.gelu(self.first(frames.astype(self.dtype))), mask[:, ::stride]
        values = jax.nn.gelu(self.second(jnp.where(mask[..., None], values, 0)))
        return Tokens.make(values, mask[:, ::second_stride])

    def _packed_tokens(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Tokens of packed chunks [R, N, chunk], one per chunk, before positional embeddings.

        Computes each token separately from its receptive field: 3 steps of the first convolution, which read
        2 * stride + 3 frames. For example with stride 2:

            frames in the receptive field            0 to 6
            windows of the first convolution         0 to 2, 2 to 4, 4 to 6
            window of the second convolution         these 3 steps
        """
        stride, second_stride = STRIDES[self.config.reduction]
        padding = left_padding(3, second_stride)
        start = -stride * padding - left_padding(3, stride)
        field, first_frame = self.spectrogram.packed_frames(inputs, range(start, start + 2 * stride + 3), rng)
        field = field.astype(self.dtype)
        windows = jnp.stack([field[:, :, stride * step : stride * step + 3] for step in range(3)], axis=2)
        # [R, N, 3 steps, 3 frames * bins] -> [R, N, 3 steps, width]
        values = jax.nn.gelu(self.first.apply_to_windows(windows.reshape(*windows.shape[:3], -1)))
        step = first_frame[..., None] // stride - padding + jnp.arange(3)
        # Like the mask of unpacked recordings: a step is valid if its first frame starts in the recording.
        valid = (step >= 0) & (step * stride * self.spectrogram.hop < inputs.positions[..., 1:])
        values = jnp.where(valid[..., None], values, 0)
        # [R, N, 3 steps * width] -> [R, N, width]
        values = jax.nn.gelu(self.second.apply_to_windows(values.reshape(*values.shape[:2], -1)))
        return Tokens.make(values, inputs.mask, inputs.positions[..., :1], inputs.segments, inputs.slots)


STRIDES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 6: (2, 3), 8: (2, 4)}
"""Strides of the two convolutions, by reduction."""
