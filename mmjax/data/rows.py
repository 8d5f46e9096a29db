"""Where the inputs of a batch's examples go: a row for each, or one that several share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mmjax.data.buffer_pool import BufferPool
from mmjax.modalities import Modality
from mmjax.tokens import Input, InputSpec


class Rows(Protocol):
    """The inputs of a batch while it is made."""

    def put(self, name: str, place: int, number: int, raw: Any) -> None:
        """Processes an input of the example at this place of the batch, the record of this number.

        Examples come in the order of their places. Raises ValueError, and leaves the input absent, if it is broken.
        """

    @property
    def inputs(self) -> dict[str, Input]:
        """All of them, absent where nothing was put."""


class OwnRows:
    """Each example has a row of its own."""

    def __init__(self, modalities: Mapping[str, Modality], count: int, buffers: BufferPool):
        self._modalities = modalities
        self.inputs = {name: self._absent(modality.spec, count, buffers) for name, modality in modalities.items()}

    @staticmethod
    def _absent(spec: InputSpec, count: int, buffers: BufferPool) -> Input:
        mask = np.zeros((count, *spec.shape[: spec.mask_rank]), bool)
        return Input(buffers.zeros((count, *spec.shape), spec.dtype), mask)

    def put(self, name: str, place: int, number: int, raw: Any) -> None:
        value, mask = self._modalities[name].process(raw)
        into = self.inputs[name]
        if value.shape != into.values.shape[1:] or mask.shape != into.mask.shape[1:]:
            raise ValueError(f"values {value.shape} with mask {mask.shape} do not fit the input's specification")
        check_finite(value)
        into.values[place], into.mask[place] = value, mask


class SharedRows:
    """Examples share rows: an example's elements follow those of the example before it.

    Args:
      modalities: {name of an input: what makes elements of it}.
      specs: {name: the form of a row}.
      rooms: {name: int [records], how many elements were planned for each}; without, a row is planned for one example.
      count: of the examples.
      slots: E, examples that share a row.
      memory: what the values are written into.
    """

    def __init__(
        self,
        modalities: Mapping[str, Any],
        specs: Mapping[str, InputSpec],
        planned_lengths: Mapping[str, np.ndarray] | None,
        count: int,
        buffers: BufferPool,
        slots: int,
    ):
        self._modalities, self._planned_lengths, self._slots = modalities, planned_lengths, slots
        rows = count // slots
        self._filled = {name: np.zeros(rows, np.int64) for name in specs}
        self.inputs = {
            name: Input(
                buffers.zeros((rows, *spec.shape), spec.dtype),
                np.zeros((rows, spec.shape[0]), bool),
                np.zeros((rows, spec.shape[0], spec.axes), np.float32),
                np.zeros((rows, spec.shape[0]), np.int32),
                slots,
            )
            for name, spec in specs.items()
        }

    def put(self, name: str, place: int, number: int, raw: Any) -> None:
        into, modality = self.inputs[name], self._modalities[name]
        budget = into.mask.shape[1]
        room = budget if self._planned_lengths is None else int(self._planned_lengths[name][number])
        values, positions = modality.process_packed(raw, budget)
        if len(values) > room:
            # Augmentation has made it larger than it was when it was planned.
            values, positions = modality.process_packed(raw, room)
        if values.shape[1:] != into.values.shape[2:] or len(values) > room:
            raise ValueError(f"{values.shape} do not fit into {room} of the input's specification")
        check_finite(values)
        row, slot = divmod(place, self._slots)
        begin = self._filled[name][row]
        here = row, slice(begin, begin + len(values))
        into.values[here], into.mask[here], into.positions[here], into.segments[here] = values, True, positions, slot
        self._filled[name][row] += len(values)


def check_finite(values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("values that are not finite")
