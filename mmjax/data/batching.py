"""One batch from its data step: reads the records, processes their inputs, and leaves absent what is not there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.buffer_pool import BufferPool
from mmjax.data.dataset import Record, Source, dropped
from mmjax.data.rows import Rows
from mmjax.data.samplers import IndexSampler
from mmjax.modalities.augmentation import Augmentation
from mmjax.tokens import Batch, Target, TargetSpec

LARGEST_STEP = 2**31 - 1
# Separate the draws of modality dropout and of augmentation from others that use the same seed.
_DROPOUT = 0x6D6F64616C697479
_AUGMENT = 0x6175676D656E7421


class BatchFunction:
    """Maps a data step to its batch. It can be pickled, as worker processes call it too.

    Args:
      source: the records.
      names: of the inputs that the model takes.
      make_rows: makes what takes the inputs of so many examples, in this memory.
      targets: {name of a target: its shape and dtype}.
      order: which records are in the batch of a data step.
      rows: which rows of the global batch to make.
      slots: examples that share a row.
      seed: of modality dropout and augmentation.
      modality_dropout: {name of an input: rate of modality dropout}.
      augment: {name of an input: what changes its raw data, in order}.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        make_rows: Callable[[int, BufferPool], Rows],
        targets: Mapping[str, TargetSpec],
        order: IndexSampler,
        rows: np.ndarray,
        slots: int,
        seed: int,
        modality_dropout: Mapping[str, float],
        augment: Mapping[str, Sequence[Augmentation]],
    ):
        self._source, self._names, self._make_rows, self._targets = source, tuple(names), make_rows, targets
        # The places of the examples in the whole batch, which has `slots` of them for each row.
        self._order, self._rows = order, rows
        self._places = (rows[:, None] * slots + np.arange(slots)).reshape(-1)
        self._seed, self._absent, self._augment = seed, modality_dropout, augment
        self._memory = BufferPool()

    def __call__(self, step: int) -> tuple[Batch, tuple[str, ...]]:
        """Returns the batch, and a line for each record or input that is broken."""
        size, count = len(self._source), len(self._places)
        rows = self._make_rows(count, self._memory)
        targets = {
            name: Target(np.zeros((count, *spec.shape), spec.dtype), np.zeros(count, np.float32))
            for name, spec in self._targets.items()
        }
        ids = np.full(count, -1, np.int32)
        troubles: list[str] = []
        draws = _Draws(self._seed, int(step))
        found, epochs = self._order(int(step), self._rows)
        slots = np.flatnonzero(found >= 0).tolist()
        for slot, number in zip(slots, found[slots].tolist(), strict=True):
            # One at a time, so that the memory that a picture was decoded into is used again.
            record, row = self._read(number, troubles), int(self._places[slot])
            # The epochs wrap around before the ids leave 32 bits.
            ids[slot] = number + size * (int(epochs[slot]) % (LARGEST_STEP // size))
            for name, raw in self._kept(record, row, draws).items():
                try:
                    rows.put(name, slot, number, self._augmented(name, raw, row, draws))
                except Exception as error:
                    troubles.append(f"{name} of record {number}: {type(error).__name__}: {error}")
            for name, value in record.targets.items():
                if value is not None and name in targets:
                    targets[name].values[slot], targets[name].weight[slot] = value, 1.0
        return Batch(rows.inputs, targets, ids, np.asarray(step, np.int32)), tuple(troubles)

    def _read(self, number: int, troubles: list[str]) -> Record:
        try:
            return self._source[number]
        # A damaged file raises whatever its reader trips over; one of them must not end a run of days.
        except Exception as error:
            troubles.append(f"record {number}: {type(error).__name__}: {error}")
            return Record({}, {})

    def _kept(self, record: Record, row: int, draws: _Draws) -> dict[str, Any]:
        """The raw inputs that the model takes, that the record has, and that modality dropout leaves."""
        raws = {name: raw for name, raw in record.inputs.items() if raw is not None and name in self._names}
        if self._absent:
            for name in dropped(self._absent, raws, draws(_DROPOUT, row)):
                del raws[name]
        return raws

    def _augmented(self, name: str, raw: Any, row: int, draws: _Draws) -> Any:
        for turn, augmentation in enumerate(self._augment.get(name, ())):
            raw = augmentation(raw, draws(_AUGMENT, row, f"{name}/{turn}"))
        return raw


class _Draws:
    """Random numbers of one batch. Those of the call before end where the next begin."""

    def __init__(self, seed: int, step: int):
        self._seed, self._step = seed % 2**64, step
        self._generator = np.random.Generator(np.random.Philox(0))
        self._state: Any = self._generator.bit_generator.state

    def __call__(self, purpose: int, row: int, place: str = "") -> np.random.Generator:
        """Numbers that belong to the seed, the purpose, the row of the data step, and the place.

        The same that a new `Philox(key, counter)` draws, in a quarter of the time that making one takes.
        """
        self._state["state"]["key"][:] = self._seed, purpose
        self._state["state"]["counter"][:] = 0, row, self._step, zlib.crc32(place.encode())
        self._generator.bit_generator.state = self._state
        return self._generator
