"""Sample packing (config section `data.packing`): several examples share each row of the inputs.

Accelerators need rows of a fixed length, and examples differ in length: with one padded example per row, most of a
batch may be padding. Packed examples follow one another in a row, and attention masks their segments from each other
(Dehghani et al., Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution, 2023). An example has
the same slot in all of its inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.config import Count
from mmjax.data.buffer_pool import BufferPool
from mmjax.data.dataset import Dataset
from mmjax.data.packed_sampler import PackedSampler
from mmjax.data.rows import PackedRows
from mmjax.data.samplers import IndexSampler
from mmjax.errors import UserError, nearest
from mmjax.tokens import InputSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """Options of sample packing.

    A batch of `train.batch_size` slots has `train.batch_size` / `slots` rows. Slots for which no example fits stay
    empty, so the batch size is the maximum number of examples per step.

    Attributes:
      slots: maximum number of examples per row; 1 disables packing and ignores the other options.
      budgets: {input name: elements per row: image patches, text tokens, audio chunks}, one for each encoder. An
        example longer than a row is shrunk (image) or truncated.
      window: number of examples packed together. A larger window fills rows better; its examples occur in nearby steps.
    """

    slots: Count = 1
    budgets: dict[str, Count] = dataclasses.field(default_factory=dict)
    window: Count = 1024


class Packing:
    """Specs, lengths and samplers of packed inputs.

    Args:
      config: the section `data.packing`.
      modalities: {input name: modality that processes it}.

    Attributes:
      specs: {input name: spec of its rows}.

    Raises:
      UserError: if an input does not support packing or has no budget.
    """

    def __init__(self, config: PackingConfig, modalities: Mapping[str, Any]):
        where = "data.packing.budgets"
        for name in config.budgets:
            if name not in modalities:
                raise UserError(f"{where}.{name}", f"the model has no input {name!r}", nearest(name, modalities))
        for name, modality in modalities.items():
            if not hasattr(modality, "process_packed"):
                problem = f"input {name!r} of kind {type(modality).__name__.lower()!r} does not support packing"
                raise UserError("data.packing", problem, "remove its encoder, or set data.packing.slots = 1")
            if name not in config.budgets:
                raise UserError(f"{where}.{name}", "is missing", "set the number of elements per row")
        self.config, self.modalities = config, dict(modalities)
        self.specs: dict[str, InputSpec] = {}
        for name, modality in modalities.items():
            try:
                self.specs[name] = modality.packed_spec(config.budgets[name])
            except ValueError as error:
                problem, _, remedy = str(error).partition("; ")
                raise UserError(f"data.inputs.{name}", problem, remedy) from error

    def rows(self, batch_size: int, where: str = "train.batch_size") -> int:
        """Returns the number of rows of a batch. Raises UserError if `slots` does not divide the batch size."""
        if batch_size % self.config.slots:
            problem = f"{batch_size} is not a multiple of data.packing.slots = {self.config.slots}"
            raise UserError(where, problem, f"use a multiple of {self.config.slots}")
        return batch_size // self.config.slots

    def planned_lengths(self, dataset: Dataset, split: str, size: int) -> dict[str, np.ndarray]:
        """Computes the length of each record in each input from the dataset's index, without reading records.

        Returns:
          {input name: int64 [size], number of elements, 0 if the record lacks the input}.

        Raises:
          UserError: if the index lacks a column that a modality needs.
        """
        # A single dataset of a mixture may lack inputs of the others.
        available = getattr(dataset, "inputs_of", lambda split: dataset.inputs)(split)
        columns: Mapping[str, np.ndarray] = getattr(dataset, "columns", lambda split: {})(split)
        planned_lengths = {}
        for name, modality in self.modalities.items():
            if name not in available:
                planned_lengths[name] = np.zeros(size, np.int64)
                continue
            for measure in modality.measures:
                if f"{name}/{measure}" not in columns:
                    problem = f"the index of split {split!r} has no column {f'{name}/{measure}'!r}"
                    remedy = "prepare the data again with this version of mmjax, or set data.packing.slots = 1"
                    raise UserError("data.packing", problem, remedy)
            measured = {measure: np.asarray(columns[f"{name}/{measure}"], float) for measure in modality.measures}
            known = np.all([~np.isnan(values) for values in measured.values()], axis=0)
            filled = {measure: np.where(known, values, 1.0) for measure, values in measured.items()}
            planned_lengths[name] = np.where(known, modality.lengths(filled, self.config.budgets[name]), 0)
        return planned_lengths

    def sampler(
        self,
        stream: IndexSampler,
        planned_lengths: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int,
        windows: int | None = None,
    ) -> PackedSampler:
        """Returns a sampler that packs the examples of `stream`, whose step k is window k."""
        config, names = self.config, list(planned_lengths)
        lengths = np.stack([planned_lengths[name] for name in names], axis=1)
        budgets = np.array([config.budgets[name] for name in names])
        rows = self.rows(batch_size)
        return PackedSampler(stream, lengths, budgets, config.slots, config.window, rows, seed, windows)

    def packed_rows(
        self, planned_lengths: Mapping[str, np.ndarray] | None, count: int, buffers: BufferPool, slots: int
    ) -> PackedRows:
        """Returns a writer of `count` examples, `slots` per row; see `PackedRows`."""
        return PackedRows(self.modalities, self.specs, planned_lengths, count, buffers, slots)
