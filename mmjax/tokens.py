"""Data types shared by all model parts: `Tokens`, `Input`, `Target`, `Batch` and their specs.

Shapes are static, and absent data has mask False. `Batch.zero_absent` replaces absent values with zeros before the
first operation: masking only the output would let a NaN reach the weight gradients (0 * NaN = NaN).

Packing: several examples share one row. A packed batch has R rows of E slots each; slot e of row r holds example
b = r * E + e, so B = R * E. Inputs and tokens have R rows, and `segments` holds the slot of each element. Targets, ids
and pooled outputs have one entry per example, B in total. An example occupies the same slot in all of its inputs. The
unpacked batch is the case E = 1. One packed row with E = 3 slots, of which the last is empty:

    values     a0  a1  a2  b0  b1   0   0
    mask        1   1   1   1   1   0   0
    positions   0   1   2   0   1   0   0
    segments    0   0   0   1   1   0   0
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
    """Turns `cls` into a frozen dataclass of arrays (or trees of arrays) and registers it as a JAX pytree.

    Fields declared with `static()` hold plain values and belong to the tree structure.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def static(default: Any) -> Any:
    """Declares a non-array field of a `pytree` class."""
    return dataclasses.field(default=default, metadata={"static": True})


def slot_masks(mask: Array, segments: Array | None, slots: int) -> Array:
    """Returns bool [R, E, N], the mask of each slot's elements, from the row mask [R, N] and segments [R, N]."""
    if slots == 1 or segments is None:
        return mask[:, None]
    return mask[:, None] & (segments[:, None] == np.arange(slots, dtype=np.int32)[:, None])


@pytree
class Tokens:
    """Sequences of vectors with mask, positions and segments; a row holds one example or several packed ones.

    Attributes:
      values: [R, N, D], zero where `mask` is False.
      mask: [R, N] bool, True for real tokens, False for padding.
      positions: [R, N, axes] float32, coordinates of each token within its example: (row, column), index, (x, y, z) …
      segments: [R, N] int32, slot of each token; attention is limited to tokens of equal segment.
      slots: E, number of slots per row.
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
        """Builds Tokens and zeroes masked values. Positions default to the token index, segments to all 0."""
        batch, length = mask.shape
        if positions is None:
            index = jnp.arange(length, dtype=jnp.float32)[None, :, None]
            positions = jnp.broadcast_to(index, (batch, length, 1))
        if segments is None:
            segments = jnp.zeros((batch, length), jnp.int32)
        values = jnp.where(mask[..., None], values, 0)
        return Tokens(values, mask, positions, segments, slots)

    @staticmethod
    def from_examples(values: Array, slots: int = 1, mask: Array | None = None) -> Tokens:
        """Builds Tokens from Q vectors per example, [B, Q, D]; `mask` [B] bool marks valid examples (default: all)."""
        batch, count, width = values.shape
        rows, length = batch // slots, slots * count
        mask = jnp.broadcast_to(True if mask is None else mask[:, None], (batch, count))
        if slots == 1:
            return Tokens.make(values, mask)
        segments = jnp.broadcast_to(jnp.repeat(jnp.arange(slots, dtype=jnp.int32), count), (rows, length))
        positions = jnp.broadcast_to(jnp.tile(jnp.arange(count, dtype=jnp.float32), slots)[:, None], (rows, length, 1))
        return Tokens.make(values.reshape(rows, length, width), mask.reshape(rows, length), positions, segments, slots)

    def with_values(self, values: Array) -> Tokens:
        """Replaces the vectors with `values` [R, N, D'], zeroed where masked."""
        return dataclasses.replace(self, values=jnp.where(self.mask[..., None], values, 0))

    @property
    def width(self) -> int:
        """D, the token width."""
        return self.values.shape[-1]

    @property
    def examples(self) -> int:
        """B = R * E, number of example slots in all rows."""
        return self.mask.shape[0] * self.slots

    @property
    def members(self) -> Array:
        """Mask of each example's tokens within its row, [R, E, N] bool."""
        return slot_masks(self.mask, self.segments, self.slots)

    @property
    def present(self) -> Array:
        """Mask of examples with at least one token, [B] bool."""
        return self.members.any(axis=2).reshape(-1)


@pytree
class Input:
    """Model input of one modality.

    Attributes:
      values: [B, ...], any dtype; [R, N, ...] if packed.
      mask: bool; its shape is a prefix of the shape of `values`: [B] for inputs of fixed size (images), [B, length] for
        inputs of variable length (texts, waveforms), [R, N] if packed. All False if the modality is absent.
      positions: [R, N, axes] float32, coordinates of each element within its example; None unless packed.
      segments: [R, N] int32, slot of each element; None unless packed.
      slots: E, number of slots per row.
    """

    values: Any
    mask: Any
    positions: Any = None
    segments: Any = None
    slots: int = static(1)

    @property
    def present(self) -> Array:
        """Mask of examples that have this modality, [B] bool."""
        mask = self.mask.reshape(self.mask.shape[0], -1)
        return slot_masks(mask, self.segments, self.slots).any(axis=2).reshape(-1)


@pytree
class Target:
    """Training target of one task.

    Attributes:
      values: [B, ...], such as class indices, soft labels or regression values.
      weight: [B] float32, weight of each example; 0 if its target is missing.
    """

    values: Any
    weight: Any


@pytree
class Batch:
    """Data of one training or evaluation step.

    Attributes:
      inputs: {input name: Input}.
      targets: {target name: Target}.
      ids: [B] int32, unique example ids, which seed the random draws of each example; -1 for padding.
      step: [] int32, data step of this batch.
    """

    inputs: dict[str, Input]
    targets: dict[str, Target]
    ids: Any
    step: Any

    @property
    def size(self) -> int:
        """B, number of examples (slots, if packed)."""
        return self.ids.shape[0]

    @property
    def rows(self) -> int:
        """R, number of rows; equals B unless packed."""
        return next((x.mask.shape[0] for x in self.inputs.values()), self.size)

    def zero_absent(self) -> Batch:
        """Zeroes input values where the mask is False and target values where the weight is 0."""

        def zero(valid, values):
            valid = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
            return jnp.where(valid, values, jnp.zeros((), values.dtype))

        return dataclasses.replace(
            self,
            inputs={name: dataclasses.replace(x, values=zero(x.mask, x.values)) for name, x in self.inputs.items()},
            targets={name: Target(zero(t.weight > 0, t.values), t.weight) for name, t in self.targets.items()},
        )

    def without(self, names: Collection[str]) -> Batch:
        """Masks out the named inputs for every example."""
        absent = {name: dataclasses.replace(x, mask=x.mask & False) for name, x in self.inputs.items() if name in names}
        return dataclasses.replace(self, inputs={**self.inputs, **absent})


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Static description of one example of an input, from which an encoder is built.

    Attributes:
      shape: shape of `Input.values` without the batch axis; for packed inputs, of a row, [budget, ...].
      dtype: dtype of `Input.values`, a NumPy name.
      mask_rank: number of leading axes of `shape` that the mask covers (0 for images, 1 for texts).
      details: metadata of the values, such as {"vocabulary": 256} or {"sample_rate": 16000}. For float values,
        "categories" lists the number of categories for each index of the last axis, 0 if it is numeric, and "flags"
        lists the indices that hold 0/1 flags.
      axes: number of position axes of a packed input; 0 if not packed.
    """

    shape: tuple[int, ...]
    dtype: str
    mask_rank: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    axes: int = 0

    @property
    def real_valued(self) -> np.ndarray:
        """Mask of the real numbers along the last axis of `shape`, bool; False for ids, categories and flags."""
        real = np.full(self.shape[-1:], self.dtype.startswith("float"))
        if "categories" in self.details:
            real &= np.asarray(self.details["categories"]) == 0
        real[list(self.details.get("flags", ()))] = False
        return real


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """Static description of one example of a target, from which a task is built.

    Attributes:
      shape: shape of `Target.values` without the batch axis.
      dtype: dtype of `Target.values`, a NumPy name.
      classes: class names of a categorical target, else ().
      mean, std: statistics of a numeric target over the training split; 0 and 1 if unknown. Batches hold
        standardised values, (value - mean) / std.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def standardise(self, value: Any) -> Any:
        """Returns (value - mean) / std. Class targets are unchanged.

        Computes in float64, because float32 has a resolution of 128 s in Unix time.
        """
        if self.classes or (self.mean, self.std) == (0.0, 1.0):
            return value
        return (np.asarray(value, np.float64) - self.mean) / self.std


def abstract_batch(inputs: dict[str, InputSpec], targets: dict[str, TargetSpec], size: int, slots: int = 1) -> Batch:
    """Builds a Batch of `ShapeDtypeStruct`s for tracing, with `size` examples and `slots` examples per row."""

    def shape(dtype, dims, count=size):
        return jax.ShapeDtypeStruct((count, *dims), dtype)

    def abstract_input(spec: InputSpec) -> Input:
        rows, mask_shape = size // slots, spec.shape[: spec.mask_rank]
        values, mask = shape(spec.dtype, spec.shape, rows), shape("bool", mask_shape, rows)
        if not spec.axes:
            return Input(values, mask)
        positions = shape("float32", (*mask_shape, spec.axes), rows)
        return Input(values, mask, positions, shape("int32", mask_shape, rows), slots)

    return Batch(
        inputs={name: abstract_input(spec) for name, spec in inputs.items()},
        targets={name: Target(shape(spec.dtype, spec.shape), shape("float32", ())) for name, spec in targets.items()},
        ids=shape("int32", ()),
        step=jax.ShapeDtypeStruct((), "int32"),
    )
