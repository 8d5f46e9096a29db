"""A Transformer over patches of a series (Nie et al., A Time Series is Worth 64 Words, 2023)."""

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
    """A series [B, length, channels] with its mask [B, length], as tokens with positions (index of the patch).

    A patch holds all channels of a few steps. That of the paper holds one channel, which suits a forecast of each; here
    tasks ask what the channels mean together.
    """

    example: ClassVar[InputSpec] = InputSpec((12, 2), "float32", mask_rank=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes.

        Attributes:
          patch: steps in a token.
          stride: steps from one patch to the next; less than `patch` makes them overlap. `patch` by default.
        """

        patch: Count = 16
        stride: Derived = DERIVED

        def __post_init__(self):
            super().__post_init__()
            if self.stride is None:
                object.__setattr__(self, "stride", self.patch)
            if self.stride > self.patch:
                raise ValueError(f"stride {self.stride} leaves out steps between patches of {self.patch}; make it less")

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        length, channels = spec.shape
        if length < config.patch or (length - config.patch) % config.stride:
            raise ValueError(
                f"patches of {config.patch} steps, {config.stride} apart, do not end with the {length} steps; "
                "choose patch and stride so that length - patch is a multiple of stride"
            )
        self.patch, self.stride = config.patch, config.stride
        self.dtype, self.width = precision.dtype, config.width
        self.patches = Convolution(
            channels, config.width, (config.patch,), stride=(config.stride,), padding="VALID", rngs=rngs
        )
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        values = self.patches(input.values.astype(self.dtype))
        # A patch is real where any of its steps is.
        steps = self.stride * np.arange(values.shape[1])[:, None] + np.arange(self.patch)
        tokens = Tokens.make(values, input.mask[:, steps].any(axis=-1))
        places = sincos_positions(tokens.positions, self.width).astype(self.dtype)
        return self.trunk(tokens.with_values(values + places), rng)
