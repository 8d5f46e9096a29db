"""The section `data.packing`: several examples share each row of the inputs.

Rows of a fixed length are what accelerators want, and examples differ in length: padded one by one, most of a batch may
be padding. Packed examples stand in one row after the other, and segments keep them apart everywhere (Dehghani et al.,
Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution, 2023). An example has the same slot in
all of its inputs.
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
from mmjax.data.rows import SharedRows
from mmjax.data.samplers import IndexSampler
from mmjax.errors import UserError, nearest
from mmjax.tokens import InputSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How examples share rows.

    A batch of `train.batch_size` examples has `train.batch_size` / `slots` rows; the slots that do not fill stay empty,
    so the batch size is the largest number of examples in a step.

    Attributes:
      slots: examples that share a row at most; 1 packs nothing, and nothing else here counts then.
      budgets: {name of an input: elements of a row: patches of pictures, tokens of texts, chunks of recordings}; one
        for each encoder. An example that is longer than a row is made smaller (a picture) or cut.
      window: examples among which the plan looks for such as fit together. More fill rows better; examples of one
        window come near each other in time.
    """

    slots: Count = 1
    budgets: dict[str, Count] = dataclasses.field(default_factory=dict)
    window: Count = 1024


class Packing:
    """What the inputs of a run are when they are packed.

    Args:
      config: the section.
      modalities: {name of an input: the modality that processes it}.

    Attributes:
      specs: {name of an input: the form of its rows}.

    Raises:
      UserError: if an input cannot be packed or has no budget.
    """

    def __init__(self, config: PackingConfig, modalities: Mapping[str, Any]):
        where = "data.packing.budgets"
        for name in config.budgets:
            if name not in modalities:
                raise UserError(f"{where}.{name}", f"the model has no input {name!r}", nearest(name, modalities))
        for name, modality in modalities.items():
            if not hasattr(modality, "process_packed"):
                kind = type(modality).__name__.lower()
                problem = f"{name!r} is an input of the kind {kind!r}, which cannot be packed"
                raise UserError("data.packing", problem, "leave its encoder out, or set data.packing.slots = 1")
            if name not in config.budgets:
                raise UserError(f"{where}.{name}", "is missing", "say how many elements of it a row holds")
        self.config, self.modalities = config, dict(modalities)
        self.specs: dict[str, InputSpec] = {}
        for name, modality in modalities.items():
            try:
                self.specs[name] = modality.packed_spec(config.budgets[name])
            except ValueError as error:
                problem, _, remedy = str(error).partition("; ")
                raise UserError(f"data.inputs.{name}", problem, remedy) from error

    def rows(self, batch_size: int, where: str = "train.batch_size") -> int:
        """The rows of a batch of so many slots."""
        if batch_size % self.config.slots:
            problem = f"{batch_size} slots are no whole rows of data.packing.slots = {self.config.slots}"
            raise UserError(where, problem, f"make it a multiple of {self.config.slots}")
        return batch_size // self.config.slots

    def planned_lengths(self, dataset: Dataset, split: str, size: int) -> dict[str, np.ndarray]:
        """{name of an input: int [size], the elements that each record of a split takes}, from the index alone."""
        # Of a mixture, one dataset may lack what another has.
        there = getattr(dataset, "inputs_of", lambda split: dataset.inputs)(split)
        columns: Mapping[str, np.ndarray] = getattr(dataset, "columns", lambda split: {})(split)
        planned_lengths = {}
        for name, modality in self.modalities.items():
            if name not in there:
                planned_lengths[name] = np.zeros(size, np.int64)
                continue
            for measure in modality.measures:
                if f"{name}/{measure}" not in columns:
                    problem = f"nothing is known of {f'{name}/{measure}'!r} of {split!r} before a record is read"
                    remedy = "pack what `mmjax prepare` of this version made, or set data.packing.slots = 1"
                    raise UserError("data.packing", problem, remedy)
            measured = {measure: np.asarray(columns[f"{name}/{measure}"], float) for measure in modality.measures}
            known = np.all([~np.isnan(values) for values in measured.values()], axis=0)
            filled = {measure: np.where(known, values, 1.0) for measure, values in measured.items()}
            planned_lengths[name] = np.where(known, modality.lengths(filled, self.config.budgets[name]), 0)
        return planned_lengths

    def order(
        self,
        order: IndexSampler,
        planned_lengths: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int,
        windows: int | None = None,
    ) -> PackedSampler:
        """The plan of a stream of examples that `order` gives by windows."""
        config, names = self.config, list(planned_lengths)
        lengths = np.stack([planned_lengths[name] for name in names], axis=1)
        budgets = np.array([config.budgets[name] for name in names])
        return PackedSampler(order, lengths, budgets, config.slots, config.window, self.rows(batch_size), seed, windows)

    def shared_rows(
        self, planned_lengths: Mapping[str, np.ndarray] | None, count: int, buffers: BufferPool, slots: int
    ) -> SharedRows:
        return SharedRows(self.modalities, self.specs, planned_lengths, count, buffers, slots)
