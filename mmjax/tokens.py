"""Tokens, the only currency between the parts of a model, and Batch, the only form of data that a step sees.

Shapes are static. What is absent is a mask of zeros: `Batch.zero_absent` replaces absent values by zeros before the
first operation, because a mask that is applied afterwards lets a NaN through into the gradients of weights
(0 * NaN = NaN).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose fields are all arrays, or trees of arrays, and registers it as a JAX pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Tokens:
    """A sequence of vectors for each example.

    Attributes:
      values: [B, N, D], zero where `mask` is False.
      mask: [B, N] bool, True where a token is real.
      positions: [B, N, axes] float32, the place of each token: (row, column), seconds, index …
      segments: [B, N] int32; tokens see each other only where their segments are equal.
    """

    values: Any
    mask: Any
    positions: Any
    segments: Any

    @staticmethod
    def make(values: Array, mask: Array, positions: Array | None = None, segments: Array | None = None) -> Tokens:
        """Makes Tokens with the masked values zeroed; positions default to the index, segments to one segment."""
        batch, length = mask.shape
        if positions is None:
            index = jnp.arange(length, dtype=jnp.float32)[None, :, None]
            positions = jnp.broadcast_to(index, (batch, length, 1))
        if segments is None:
            segments = jnp.zeros((batch, length), jnp.int32)
        values = jnp.where(mask[..., None], values, 0)
        return Tokens(values, mask, positions, segments)

    def with_values(self, values: Array) -> Tokens:
        """The same tokens with other vectors [B, N, D'], zeroed where masked."""
        return dataclasses.replace(self, values=jnp.where(self.mask[..., None], values, 0))

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    @property
    def present(self) -> jax.Array:
        """[B] bool: whether the example has any token at all."""
        return self.mask.any(axis=1)


@pytree
class Input:
    """What one modality gives the model.

    Attributes:
      values: [B, ...], of any dtype.
      mask: bool, the shape is a prefix of that of `values`: [B] where an example is there or not (an image),
        [B, length] where its length varies (a text, a waveform). All False means that the modality is absent.
    """

    values: Any
    mask: Any

    @property
    def present(self) -> Array:
        """[B] bool: whether the example has anything of this modality."""
        return self.mask.reshape(self.mask.shape[0], -1).any(axis=1)


@pytree
class Target:
    """What one task should answer.

    Attributes:
      values: [B, ...]: class indices, soft targets, numbers …
      weight: [B] float32, how much the example counts; 0 means that it has no target.
    """

    values: Any
    weight: Any


@pytree
class Batch:
    """One step's data.

    Attributes:
      inputs: {name of the modality's input: Input}.
      targets: {name of the target: Target}.
      ids: [B] int32, each example's own number; random draws for an example depend on it. Padding has -1.
      step: [] int32, the data step that this batch belongs to.
    """

    inputs: dict[str, Input]
    targets: dict[str, Target]
    ids: Any
    step: Any

    @property
    def size(self) -> int:
        return self.ids.shape[0]

    def zero_absent(self) -> Batch:
        """Replaces whatever stands where nothing is present by zeros, so that it can reach no result."""

        def spread(flag, values):
            return flag.reshape(flag.shape + (1,) * (values.ndim - flag.ndim))

        def zero(flag, values):
            return jnp.where(spread(flag, values), values, jnp.zeros((), values.dtype))

        return dataclasses.replace(
            self,
            inputs={name: Input(zero(x.mask, x.values), x.mask) for name, x in self.inputs.items()},
            targets={name: Target(zero(t.weight > 0, t.values), t.weight) for name, t in self.targets.items()},
        )

    def without(self, names: Collection[str]) -> Batch:
        """The same batch with the named inputs absent from every example."""
        inputs = {name: Input(x.values, x.mask & False) if name in names else x for name, x in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What an encoder may know of its input before it sees one: shape and dtype of one example, without B.

    Attributes:
      shape: of `Input.values`.
      dtype: of `Input.values`, a NumPy name.
      mask_rank: how many leading axes of `shape` the mask covers (0 for an image, 1 for a text).
      details: facts about the values, for example {"vocabulary": 256} or {"sample_rate": 16000}.
    """

    shape: tuple[int, ...]
    dtype: str
    mask_rank: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """What a task may know of its target.

    Attributes:
      shape, dtype: of one example.
      classes: their names, if it has some.
      mean, deviation: of a number in the training split, where they are known.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0


def abstract_batch(inputs: dict[str, InputSpec], targets: dict[str, TargetSpec], size: int) -> Batch:
    """A batch of shapes without data, for tracing."""

    def shape(spec, dims):
        return jax.ShapeDtypeStruct((size, *dims), spec)

    return Batch(
        inputs={
            name: Input(shape(spec.dtype, spec.shape), shape("bool", spec.shape[: spec.mask_rank]))
            for name, spec in inputs.items()
        },
        targets={name: Target(shape(spec.dtype, spec.shape), shape("float32", ())) for name, spec in targets.items()},
        ids=shape("int32", ()),
        step=jax.ShapeDtypeStruct((), "int32"),
    )
