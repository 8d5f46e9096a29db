"""Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021).

It also reads pictures of any resolution that share rows (Dehghani et al., Patch n' Pack: NaViT, 2023), with the same
parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.config import Count
from mmjax.layers import Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.sharding import parameter
from mmjax.tokens import Input, InputSpec, Tokens


class ViT(nnx.Module):
    """Patches of an image [B, height, width, channels], as tokens with positions (row, column).

    Packed images come as patches already, [R, budget, patch * patch * channels].
    """

    example: ClassVar[InputSpec] = InputSpec((8, 8, 3), "float32", mask_rank=0)
    packed_example: ClassVar[InputSpec] = InputSpec((12, 48), "float32", mask_rank=1, details={"patch": 4}, axes=2)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes, as in `variant="S/16"`, and the patches.

        Attributes:
          patch: side of a patch in pixels, the number after the "/" of the variant by default.
          stride: pixels from one patch to the next; less than `patch` makes them overlap. `patch` by default.
          class_token: whether a learned token stands before the patches and reads them, for `pooling="first"`; its
            position is (-1, -1).
        """

        patch: Count | None = None
        stride: Count | None = None
        class_token: bool = False

        def __post_init__(self):
            super().__post_init__()
            suffix = self.variant.partition("/")[2]
            if suffix and not suffix.isdigit():
                raise ValueError(f"variant {self.variant!r} has no number after its '/'; write it like 'S/16'")
            if self.patch is None:
                if not suffix:
                    raise ValueError("patch is missing; set patch, or a variant with one, like 'S/16'")
                object.__setattr__(self, "patch", int(suffix))
            if self.stride is None:
                object.__setattr__(self, "stride", self.patch)

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        if spec.axes:
            channels, rest = divmod(spec.shape[1], config.patch**2)
            if config.patch != spec.details["patch"] or rest:
                raise ValueError(f"patch {config.patch} is not that of the packed input; give {spec.details['patch']}")
            if config.stride != config.patch:
                raise ValueError(f"patches of packed images do not overlap; leave stride = {config.stride} out")
        else:
            height, width, channels = spec.shape
            if min(height, width) < config.patch:
                raise ValueError(f"patch {config.patch} exceeds the image {height}x{width}; make it smaller")
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.patches = Convolution(
            channels, config.width, (config.patch,) * 2, stride=(config.stride,) * 2, padding="VALID", rngs=rngs
        )
        token = jax.random.normal(rngs.params(), (1, config.width)) if config.class_token else None
        self.class_token: Any = None if token is None else parameter(token, "none", "embed")
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        tokens = self._patches(input) if input.segments is None else self._packed_patches(input)
        return self.trunk(tokens if self.class_token is None else self._with_class_token(tokens), rng)

    def _patches(self, input: Input) -> Tokens:
        patches = self.patches(input.values.astype(self.dtype))
        batch, rows, columns, width = patches.shape
        places = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        positions = jnp.broadcast_to(places.reshape(1, -1, 2), (batch, rows * columns, 2)).astype(jnp.float32)
        values = patches.reshape(batch, rows * columns, width)
        values = values + sincos_positions(positions, width).astype(self.dtype)
        return Tokens.make(values, jnp.broadcast_to(input.present[:, None], values.shape[:2]), positions)

    def _packed_patches(self, input: Input) -> Tokens:
        # A convolution that steps from patch to patch is one product for each of them.
        values = self.patches.at(input.values.astype(self.dtype))
        values = values + sincos_positions(input.positions, self.width).astype(self.dtype)
        return Tokens.make(values, input.mask, input.positions, input.segments, input.slots)

    def _with_class_token(self, tokens: Tokens) -> Tokens:
        """The tokens of each example after one of its own, which is there where the example is."""
        token = self.class_token[...].astype(self.dtype)
        first = Tokens.of_examples(
            jnp.broadcast_to(token, (tokens.examples, *token.shape)), tokens.slots, tokens.present
        )
        first = dataclasses.replace(first, positions=jnp.full((*first.mask.shape, 2), -1.0))
        return jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=1), first, tokens)
