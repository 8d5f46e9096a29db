"""A bidirectional Transformer over token ids (Devlin et al., BERT, 2019, in pre-norm form)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import nnx

from mmjax.layers import Embedding, Precision, Randomness, Transformer, TransformerConfig, sincos_positions
from mmjax.tokens import Input, InputSpec, Tokens


class TextTransformer(nnx.Module):
    """Token ids [B, length] with their mask, or packed ones [R, budget], as tokens with positions (index)."""

    example: ClassVar[InputSpec] = InputSpec((6,), "int32", mask_rank=1, details={"vocabulary": 17})
    packed_example: ClassVar[InputSpec] = dataclasses.replace(example, shape=(12,), axes=1)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes; the vocabulary follows from the text's tokeniser."""

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.width = precision.dtype, config.width
        self.embedding = Embedding(spec.details["vocabulary"], config.width, rngs=rngs)
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        # Unit variance, so that words count as much as positions do.
        values = self.embedding(input.values, self.dtype) * self.width**0.5
        tokens = Tokens.make(values, input.mask, input.positions, input.segments, input.slots)
        tokens = tokens.with_values(values + sincos_positions(tokens.positions, self.width).astype(self.dtype))
        return self.trunk(tokens, rng)
