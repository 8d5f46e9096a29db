"""Writers of batch inputs: one example per row (`PaddedRows`), or several packed into a row (`PackedRows`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mmjax.data.buffer_pool import BufferPool
from mmjax.modalities import Modality
from mmjax.tokens import Input, InputSpec


class Rows(Protocol):
    """Inputs of a batch under construction.

    Attributes:
      inputs: {name: Input}, absent where nothing was written.
    """

    inputs: dict[str, Input]

    def put(self, name: str, position: int, index: int, raw: Any) -> None:
        """Processes input `name` of record `index` and writes it at `position` of the batch.

        Calls must come in ascending order of `position`. Raises ValueError, and leaves the input absent, if `raw` is
        invalid.
        """


class PaddedRows(Rows):
    """One row per example.

    Args:
      modalities: {input name: modality that processes it}.
      count: number of examples, B.
      buffers: allocator of the values.
    """

    def __init__(self, modalities: Mapping[str, Modality], count: int, buffers: BufferPool):
        self._modalities = modalities
        self.inputs = {name: self._absent(modality.spec, count, buffers) for name, modality in modalities.items()}

    @staticmethod
    def _absent(spec: InputSpec, count: int, buffers: BufferPool) -> Input:
        mask = np.zeros((count, *spec.shape[: spec.mask_rank]), bool)
        return Input(buffers.zeros((count, *spec.shape), spec.dtype), mask)

    def put(self, name: str, position: int, index: int, raw: Any) -> None:
        values, mask = self._modalities[name].process(raw)
        output = self.inputs[name]
        if values.shape != output.values.shape[1:] or mask.shape != output.mask.shape[1:]:
            raise ValueError(f"values {values.shape} with mask {mask.shape} do not match the input spec")
        check_finite(values)
        output.values[position], output.mask[position] = values, mask


class PackedRows(Rows):
    """Rows that concatenate the elements of up to E examples.

    Args:
      modalities: {input name: packable modality that processes it}.
      specs: {input name: spec of a row}.
      planned_lengths: {input name: int [records], elements planned for each record}; None plans a whole row for each.
      count: number of examples, B = rows * E.
      buffers: allocator of the values.
      slots: E, the maximum number of examples per row.
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

    def put(self, name: str, position: int, index: int, raw: Any) -> None:
        output, modality = self.inputs[name], self._modalities[name]
        budget = output.mask.shape[1]
        planned = budget if self._planned_lengths is None else int(self._planned_lengths[name][index])
        values, positions = modality.process_packed(raw, budget)
        if len(values) > planned:
            # Augmentation has enlarged the input beyond its planned length.
            values, positions = modality.process_packed(raw, planned)
        if values.shape[1:] != output.values.shape[2:] or len(values) > planned:
            raise ValueError(f"elements {values.shape} do not match the input spec or exceed the planned {planned}")
        check_finite(values)
        row, slot = divmod(position, self._slots)
        start = self._filled[name][row]
        span = row, slice(start, start + len(values))
        output.values[span], output.mask[span] = values, True
        output.positions[span], output.segments[span] = positions, slot
        self._filled[name][row] += len(values)


def check_finite(values: np.ndarray) -> None:
    """Raises ValueError if a float array contains NaN or infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("non-finite values")
