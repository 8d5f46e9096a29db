"""Bidirectional text Transformer (Devlin et al., BERT, 2019), with pre-norm blocks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import nnx

from mmjax.layers import Embedding, Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.tokens import Input, InputSpec, Tokens


class TextTransformer(nnx.Module):
    """Transformer over token ids [B, length], or packed [R, budget]; tokens have positions (index)."""

    example: ClassVar[InputSpec] = InputSpec((6,), "int32", mask_rank=1, details={"vocabulary": 17})
    packed_example: ClassVar[InputSpec] = dataclasses.replace(example, shape=(12,), axes=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `TextTransformer`; the vocabulary size follows from the tokenizer."""

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.width = precision.dtype, config.width
        self.embedding = Embedding(spec.details["vocabulary"], config.width, rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, length, width], or [R, budget, width] if packed."""
        # Scale embeddings to unit variance, comparable to the positional embeddings.
        values = self.embedding(inputs.values, self.dtype) * self.width**0.5
        tokens = Tokens.make(values, inputs.mask, inputs.positions, inputs.segments, inputs.slots)
        tokens = tokens.with_values(values + sincos_positions(tokens.positions, self.width).astype(self.dtype))
        return self.trunk(tokens, rng)
