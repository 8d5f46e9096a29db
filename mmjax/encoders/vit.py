"""Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021).

Also supports packed images of any resolution (Dehghani et al., Patch n' Pack: NaViT, 2023) with the same parameters.
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
    """Transformer over patches of images [B, height, width, channels]; tokens have positions (row, column).

    Packed images arrive as flattened patches, [R, budget, patch * patch * channels].
    """

    example: ClassVar[InputSpec] = InputSpec((8, 8, 3), "float32", mask_rank=0)
    packed_example: ClassVar[InputSpec] = InputSpec((12, 48), "float32", mask_rank=1, details={"patch": 4}, axes=2)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `ViT`.

        Attributes:
          patch: height and width of a patch in pixels; by default the number after the "/" of `variant`.
          stride: pixels between adjacent patches, `patch` by default. Smaller strides overlap.
          class_token: prepend a learned class token with position (-1, -1), for `pooling="first"`.
        """

        patch: Count | None = None
        stride: Count | None = None
        class_token: bool = False

        def __post_init__(self):
            super().__post_init__()
            suffix = self.variant.partition("/")[2]
            if suffix and not suffix.isdigit():
                raise ValueError(f"variant {self.variant!r} has no patch size after its '/'; write it like 'S/16'")
            if self.patch is None:
                if not suffix:
                    raise ValueError("patch is missing; set patch, or a variant like 'S/16'")
                object.__setattr__(self, "patch", int(suffix))
            if self.stride is None:
                object.__setattr__(self, "stride", self.patch)

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        if spec.axes:
            channels, rest = divmod(spec.shape[1], config.patch**2)
            if config.patch != spec.details["patch"] or rest:
                raise ValueError(
                    f"patch {config.patch} does not match the packed input; set patch = {spec.details['patch']}"
                )
            if config.stride != config.patch:
                raise ValueError(f"patches of packed images cannot overlap; remove stride = {config.stride}")
        else:
            height, width, channels = spec.shape
            if min(height, width) < config.patch:
                raise ValueError(f"patch {config.patch} exceeds the image {height}x{width}; reduce it")
        self.config, self.dtype, self.width = config, precision.dtype, config.width
        self.patches = Convolution(
            channels, config.width, (config.patch,) * 2, stride=(config.stride,) * 2, padding="VALID", rngs=rngs
        )
        token = jax.random.normal(rngs.params(), (1, config.width)) if config.class_token else None
        self.class_token: Any = None if token is None else parameter(token, "none", "embed")
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, patches, width], or [R, budget, width] if packed, after the class tokens if any."""
        tokens = self._patches(inputs) if inputs.segments is None else self._packed_patches(inputs)
        return self.trunk(tokens if self.class_token is None else self._with_class_token(tokens), rng)

    def _patches(self, inputs: Input) -> Tokens:
        patches = self.patches(inputs.values.astype(self.dtype))
        batch, rows, columns, width = patches.shape
        grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), axis=-1)
        positions = jnp.broadcast_to(grid.reshape(1, -1, 2), (batch, rows * columns, 2)).astype(jnp.float32)
        values = patches.reshape(batch, rows * columns, width)
        values = values + sincos_positions(positions, width).astype(self.dtype)
        return Tokens.make(values, jnp.broadcast_to(inputs.present[:, None], values.shape[:2]), positions)

    def _packed_patches(self, inputs: Input) -> Tokens:
        # A convolution with stride equal to its kernel size is one matmul over flattened patches.
        values = self.patches.apply_to_windows(inputs.values.astype(self.dtype))
        values = values + sincos_positions(inputs.positions, self.width).astype(self.dtype)
        return Tokens.make(values, inputs.mask, inputs.positions, inputs.segments, inputs.slots)

    def _with_class_token(self, tokens: Tokens) -> Tokens:
        """Prepends one class token per example, masked if the example is absent."""
        token = self.class_token[...].astype(self.dtype)
        class_tokens = Tokens.from_examples(
            jnp.broadcast_to(token, (tokens.examples, *token.shape)), tokens.slots, tokens.present
        )
        positions = jnp.full((*class_tokens.mask.shape, 2), -1.0)
        class_tokens = dataclasses.replace(class_tokens, positions=positions)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), class_tokens, tokens)
