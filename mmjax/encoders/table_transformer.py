"""FT-Transformer (Gorishniy et al., Revisiting Deep Learning Models for Tabular Data, 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.layers import Embedding, Precision, Randomness, Transformer, TransformerConfig
from mmjax.sharding import parameter
from mmjax.tokens import Input, InputSpec, Tokens


class TableTransformer(nnx.Module):
    """Transformer over table rows [B, columns] with a mask of the present cells; one token per column.

    A numeric cell scales a learned vector of its column, a categorical cell looks up an embedding, and each column adds
    a learned column embedding.
    """

    example: ClassVar[InputSpec] = InputSpec((4,), "float32", mask_rank=1, details={"categories": (0, 3, 0, 2)})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Options of `TableTransformer`; the columns follow from the dataset."""

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.width = precision.dtype, config.width
        sizes = spec.details["categories"]
        # Tuples, since NNX would treat arrays as state.
        self.numeric = tuple(column for column, size in enumerate(sizes) if not size)
        self.categorical = tuple(column for column, size in enumerate(sizes) if size)
        self.sizes = tuple(sizes[column] for column in self.categorical)
        init = jax.nn.initializers.normal(1.0)
        if len(self.numeric):
            shape = (len(self.numeric), config.width)
            self.kernel = parameter(init(rngs.params(), shape, jnp.float32), "none", "embed")
        if len(self.categorical):
            self.embedding = Embedding(sum(self.sizes), config.width, rngs=rngs)
        self.column = parameter(init(rngs.params(), (len(sizes), config.width), jnp.float32), "none", "embed")
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, inputs: Input, rng: Randomness | None) -> Tokens:
        """Returns tokens [B, columns, width]."""
        tokens = []
        if len(self.numeric):
            cells = inputs.values[:, np.array(self.numeric), None].astype(self.dtype)
            tokens.append(cells * self.kernel[...].astype(self.dtype))
        if len(self.categorical):
            # All columns share one embedding table, in which each column has its own range of entries.
            sizes = np.array(self.sizes)
            cells = inputs.values[:, np.array(self.categorical)].astype(jnp.int32)
            entries = jnp.clip(cells, 0, sizes - 1) + np.cumsum(sizes) - sizes
            # Scale embeddings to unit variance, like the numeric tokens.
            tokens.append(self.embedding(entries, self.dtype) * self.width**0.5)
        column_order = np.argsort(self.numeric + self.categorical)
        values = jnp.concatenate(tokens, axis=1)[:, column_order] + self.column[...].astype(self.dtype)
        return self.trunk(Tokens.make(values, inputs.mask), rng)
