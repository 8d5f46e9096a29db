"""Tokens, the only currency between the parts of a model, and Batch, the only form of data that a step sees.

Shapes are static. What is absent is a mask of zeros: `Batch.zero_absent` replaces absent values by zeros before the
first operation, because a mask that is applied afterwards lets a NaN through into the gradients of weights
(0 * NaN = NaN).

Packed examples share rows. Row r of R then has E slots, and slot e of it holds example b = r * E + e of B = R * E.
Inputs and tokens have R rows, and `segments` says which slot each of their elements belongs to. Targets, ids and
whatever is read out have one entry an example, B of them. An example is in the same slot in all of its inputs; one slot
a row, E = 1, is the batch that is not packed.
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
    """Makes a frozen dataclass of arrays, or trees of arrays, and registers it as a JAX pytree.

    Fields that are `static()` are plain values, and part of the tree's structure.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def static(default: Any) -> Any:
    """A field of a `pytree` that is no array."""
    return dataclasses.field(default=default, metadata={"static": True})


def of_slots(mask: Array, segments: Array | None, slots: int) -> Array:
    """Bool [R, E, N]: which elements of a row [R, N] each of its slots has."""
    if slots == 1 or segments is None:
        return mask[:, None]
    return mask[:, None] & (segments[:, None] == np.arange(slots, dtype=np.int32)[:, None])


@pytree
class Tokens:
    """A sequence of vectors for each row: those of one example, or of the packed examples in its slots.

    Attributes:
      values: [R, N, D], zero where `mask` is False.
      mask: [R, N] bool, True where a token is real.
      positions: [R, N, axes] float32, the place of each token within its example: (row, column), seconds, index …
      segments: [R, N] int32, each token's slot; tokens see each other only where their segments are equal.
      slots: E, the slots of a row.
    """

    values: Any
    mask: Any
    positions: Any
    segments: Any
    slots: int = static(1)

    @staticmethod
    def make(
        values: Array, mask: Array, positions: Array | None = None, segments: Array | None = None, slots: int = 1
    ) -> Tokens:
        """Makes Tokens with the masked values zeroed; positions default to the index, segments to one segment."""
        batch, length = mask.shape
        if positions is None:
            index = jnp.arange(length, dtype=jnp.float32)[None, :, None]
            positions = jnp.broadcast_to(index, (batch, length, 1))
        if segments is None:
            segments = jnp.zeros((batch, length), jnp.int32)
        values = jnp.where(mask[..., None], values, 0)
        return Tokens(values, mask, positions, segments, slots)

    @staticmethod
    def of_examples(values: Array, slots: int = 1, mask: Array | None = None) -> Tokens:
        """Tokens of vectors [B, Q, D], Q of each example; `mask` [B], by default all True, says who has them."""
        batch, count, width = values.shape
        rows, length = batch // slots, slots * count
        if mask is None:
            mask = jnp.ones((batch, count), bool)
        else:
            mask = jnp.broadcast_to(mask[:, None], (batch, count))
        if slots == 1:
            return Tokens.make(values, mask)
        segments = jnp.broadcast_to(jnp.repeat(jnp.arange(slots, dtype=jnp.int32), count), (rows, length))
        positions = jnp.broadcast_to(jnp.tile(jnp.arange(count, dtype=jnp.float32), slots)[:, None], (rows, length, 1))
        return Tokens.make(values.reshape(rows, length, width), mask.reshape(rows, length), positions, segments, slots)

    def with_values(self, values: Array) -> Tokens:
        """The same tokens with other vectors [R, N, D'], zeroed where masked."""
        return dataclasses.replace(self, values=jnp.where(self.mask[..., None], values, 0))

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    @property
    def examples(self) -> int:
        """B, the slots of all rows."""
        return self.mask.shape[0] * self.slots

    @property
    def members(self) -> Array:
        """[R, E, N] bool: which tokens of its row each example has."""
        return of_slots(self.mask, self.segments, self.slots)

    @property
    def present(self) -> Array:
        """[B] bool: whether the example has any token at all."""
        return self.members.any(axis=2).reshape(-1)


@pytree
class Input:
    """What one modality gives the model.

    Attributes:
      values: [B, ...], of any dtype; [R, N, ...] where examples are packed.
      mask: bool, the shape is a prefix of that of `values`: [B] where an example is there or not (an image),
        [B, length] where its length varies (a text, a waveform), [R, N] where examples are packed. All False means that
        the modality is absent.
      positions: [R, N, axes] float32 of a packed input, each element's place within its example; None of others.
      segments: [R, N] int32 of a packed input, each element's slot; None of others.
      slots: E, the slots of a row.
    """

    values: Any
    mask: Any
    positions: Any = None
    segments: Any = None
    slots: int = static(1)

    @property
    def present(self) -> Array:
        """[B] bool: whether the example has anything of this modality."""
        mask = self.mask.reshape(self.mask.shape[0], -1)
        return of_slots(mask, self.segments, self.slots).any(axis=2).reshape(-1)


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
        """B, the examples."""
        return self.ids.shape[0]

    @property
    def rows(self) -> int:
        """R, the rows that the examples share."""
        return next((x.mask.shape[0] for x in self.inputs.values()), self.size)

    def zero_absent(self) -> Batch:
        """Replaces whatever stands where nothing is present by zeros, so that it can reach no result."""

        def spread(flag, values):
            return flag.reshape(flag.shape + (1,) * (values.ndim - flag.ndim))

        def zero(flag, values):
            return jnp.where(spread(flag, values), values, jnp.zeros((), values.dtype))

        return dataclasses.replace(
            self,
            inputs={name: dataclasses.replace(x, values=zero(x.mask, x.values)) for name, x in self.inputs.items()},
            targets={name: Target(zero(t.weight > 0, t.values), t.weight) for name, t in self.targets.items()},
        )

    def without(self, names: Collection[str]) -> Batch:
        """The same batch with the named inputs absent from every example."""
        absent = {name: dataclasses.replace(x, mask=x.mask & False) for name, x in self.inputs.items() if name in names}
        return dataclasses.replace(self, inputs={**self.inputs, **absent})


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What an encoder may know of its input before it sees one: shape and dtype of one example, without B.

    Attributes:
      shape: of `Input.values`; of a packed input that of a row, whose first number is the row's budget.
      dtype: of `Input.values`, a NumPy name.
      mask_rank: how many leading axes of `shape` the mask covers (0 for an image, 1 for a text).
      details: facts about the values, for example {"vocabulary": 256} or {"sample_rate": 16000}.
      axes: of the positions of a packed input; 0 for one that is not packed.
    """

    shape: tuple[int, ...]
    dtype: str
    mask_rank: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    axes: int = 0


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
    std: float = 1.0


def abstract_batch(inputs: dict[str, InputSpec], targets: dict[str, TargetSpec], size: int, slots: int = 1) -> Batch:
    """A batch of shapes without data, for tracing: `size` examples, `slots` of them in a row."""

    def shape(dtype, dims, count=size):
        return jax.ShapeDtypeStruct((count, *dims), dtype)

    def input(spec: InputSpec) -> Input:
        rows, mask = size // slots, spec.shape[: spec.mask_rank]
        values = shape(spec.dtype, spec.shape, rows), shape("bool", mask, rows)
        if not spec.axes:
            return Input(*values)
        return Input(*values, shape("float32", (*mask, spec.axes), rows), shape("int32", mask, rows), slots)

    return Batch(
        inputs={name: input(spec) for name, spec in inputs.items()},
        targets={name: Target(shape(spec.dtype, spec.shape), shape("float32", ())) for name, spec in targets.items()},
        ids=shape("int32", ()),
        step=jax.ShapeDtypeStruct((), "int32"),
    )
