"""Transformer over patches of time series (after Nie et al., A Time Series is Worth 64 Words, 2023)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from flax import nnx

from mmjax.config import DERIVED, Count, Derived
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input, InputSpec, Tokens


class SeriesTransformer(nnx.Module):
    """Transformer over patches of time series [B, length, channels]; tokens have positions (patch index).

    A patch covers all channels of a few time steps, since tasks predict from all channels jointly. The paper uses one
    channel per patch, which suits a separate forecast of each channel.
    """

    example: ClassVar[InputSpec] = InputSpec((12, 2), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `SeriesTransformer`.

        Attributes:
          patch: time steps per patch.
          stride: time steps between the starts of adjacent patches, `patch` by default. Smaller strides overlap.
        """

        patch: Count = 16
        stride: Derived = DERIVED

        def __post_init__(self):
            super().__post_init__()
            if self.stride is None:
                object.__setattr__(self, "stride", self.patch)
            if self.stride > self.patch:
                raise ValueError(f"stride {self.stride} exceeds patch {self.patch} and skips steps; reduce it")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        length, channels = spec.shape
        if length < config.patch or (length - config.patch) % config.stride:
            raise ValueError(
                f"patch {config.patch} and stride {config.stride} do not cover {length} time steps exactly; "
                "choose patch and stride so that length - patch is a multiple of stride"
            )
        self.patch, self.stride = config.patch, config.stride
        self.dtype, self.width = precision.dtype, config.width
        self.patches = Convolution(
            channels, config.width, (config.patch,), stride=(config.stride,), padding="VALID", rngs=rngs
        )
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, patches, width]."""
        values = self.patches(inputs.values.astype(self.dtype))
        # A patch is valid if it has a valid time step that no earlier patch covers. This makes the number of valid
        # patches independent of the padding.
        steps = self.stride * np.arange(values.shape[1])[:, None] + np.arange(self.patch)
        new = steps >= steps[:, :1] + (self.patch - self.stride)
        new[0] = True
        tokens = Tokens.make(values, (inputs.mask[:, steps] & new).any(axis=-1))
        embeddings = sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values + embeddings), rng)
