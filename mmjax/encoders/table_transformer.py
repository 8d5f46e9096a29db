"""A Transformer over the cells of a table's row (FT-Transformer: Gorishniy et al., Revisiting Deep Learning Models for
Tabular Data, 2021)."""

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
    """A row [B, columns] with a mask of its cells, as one token for each column.

    A number scales a vector of its column, a category is looked up, and each column adds a vector of its own.
    """

    example: ClassVar[InputSpec] = InputSpec((4,), "float32", mask_rank=1, details={"categories": (0, 3, 0, 2)})

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TransformerConfig):
        """Sizes; the columns follow from the data."""

    def __init__(self, config: Config, spec: InputSpec, *, precision: Precision, rngs: nnx.Rngs):
        self.dtype, self.width = precision.dtype, config.width
        sizes = spec.details["categories"]
        # Tuples: NNX would take arrays for state.
        self.numbers = tuple(place for place, size in enumerate(sizes) if not size)
        self.categories = tuple(place for place, size in enumerate(sizes) if size)
        self.sizes = tuple(sizes[place] for place in self.categories)
        init = jax.nn.initializers.normal(1.0)
        if len(self.numbers):
            shape = (len(self.numbers), config.width)
            self.scale = parameter(init(rngs.params(), shape, jnp.float32), "none", "embed")
        if len(self.categories):
            self.embedding = Embedding(sum(self.sizes), config.width, rngs=rngs)
        self.column = parameter(init(rngs.params(), (len(sizes), config.width), jnp.float32), "none", "embed")
        self.trunk = Transformer(config, rngs=rngs)

    def __call__(self, input: Input, rng: Randomness | None) -> Tokens:
        tokens = []
        if len(self.numbers):
            cells = input.values[:, np.array(self.numbers), None].astype(self.dtype)
            tokens.append(cells * self.scale[...].astype(self.dtype))
        if len(self.categories):
            # Each column has its own part of one table.
            sizes = np.array(self.sizes)
            cells = input.values[:, np.array(self.categories)].astype(jnp.int32)
            chosen = jnp.clip(cells, 0, sizes - 1) + np.cumsum(sizes) - sizes
            # Unit variance, as numbers have.
            tokens.append(self.embedding(chosen, self.dtype) * self.width**0.5)
        back = np.argsort(self.numbers + self.categories)
        values = jnp.concatenate(tokens, axis=1)[:, back] + self.column[...].astype(self.dtype)
        return self.trunk(Tokens.make(values, input.mask), rng)
