"""Batch construction: reads the records of a data step, augments and processes their inputs."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.buffer_pool import BufferPool
from mmjax.data.dataset import Record, Source, sample_dropped
from mmjax.data.rows import Rows
from mmjax.data.samplers import IndexSampler
from mmjax.modalities.augmentation import Augmentation
from mmjax.tokens import Batch, Target, TargetSpec

MAX_STEP = 2**31 - 1
# Philox keys of modality dropout and augmentation, so that their draws differ from others with the same seed.
_DROPOUT_KEY = 0x6D6F64616C697479
_AUGMENT_KEY = 0x6175676D656E7421


@dataclasses.dataclass(frozen=True)
class ReadError:
    """A record that cannot be read, in whole or in one input.

    Attributes:
      record: index of the record in its split.
      message: name of the record or input, and the reason.
    """

    record: int
    message: str


class InvalidTarget(str):
    """Message about a target that does not fit its spec.

    It ends the run: if the invalid target were masked instead, it could not be distinguished from a missing one.
    """


def find_target_problem(value: Any, spec: TargetSpec) -> str | None:
    """Checks a target against its spec: class indices in range, probabilities in [0, 1], numbers finite.

    Returns:
      The problem, as the end of a sentence, or None.
    """
    array = np.asarray(value)
    if not np.isfinite(array).all():
        return f"is {value}, which is not finite"
    if not spec.classes:
        return None
    if spec.dtype.startswith("float"):
        return None if ((array >= 0) & (array <= 1)).all() else f"is {value}, not probabilities in [0, 1]"
    inside = ((array >= 0) & (array < len(spec.classes)) & (array % 1 == 0)).all()
    return None if inside else f"is {value}, not a class index in 0 to {len(spec.classes) - 1}"


class BatchFunction:
    """Maps a data step to its batch. Picklable: worker processes call it too.

    Args:
      source: records of the split.
      names: inputs of the model.
      make_rows: (number of examples, buffers) -> writer of the inputs.
      targets: {target name: spec}.
      sampler: maps a data step to record indices.
      rows: rows of the global batch to make.
      slots: examples per row.
      seed: seed of modality dropout and augmentation.
      modality_dropout: {input name: dropout rate}.
      augment: {input name: augmentations, applied in order to its raw data}.
    """

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        make_rows: Callable[[int, BufferPool], Rows],
        targets: Mapping[str, TargetSpec],
        sampler: IndexSampler,
        rows: np.ndarray,
        slots: int,
        seed: int,
        modality_dropout: Mapping[str, float],
        augment: Mapping[str, Sequence[Augmentation]],
    ):
        self._source, self._names, self._make_rows, self._targets = source, tuple(names), make_rows, dict(targets)
        self._sampler, self._rows = sampler, rows
        # Positions of the examples in the global batch; row r has positions r * slots to (r + 1) * slots - 1.
        self._positions = (rows[:, None] * slots + np.arange(slots)).reshape(-1)
        self._seed, self._modality_dropout, self._augment = seed, modality_dropout, augment
        self._buffers = BufferPool()

    def __call__(self, step: int) -> tuple[Batch, tuple[ReadError | InvalidTarget, ...]]:
        """Returns (batch, errors): one for each unreadable record or input, and for each invalid target."""
        size, count = len(self._source), len(self._positions)
        rows = self._make_rows(count, self._buffers)
        targets = {
            name: Target(np.zeros((count, *spec.shape), spec.dtype), np.zeros(count, np.float32))
            for name, spec in self._targets.items()
        }
        errors: list[ReadError | InvalidTarget] = []
        rngs = _BatchRNG(self._seed, int(step))
        ids = self.ids(step)
        valid = np.flatnonzero(ids >= 0).tolist()
        for i, index in zip(valid, (ids[valid] % size).tolist(), strict=True):
            # Process one record at a time, so that the memory of a decoded image is reused.
            record, position = self._read(index, errors), int(self._positions[i])
            for name, raw in self._select_inputs(record, position, rngs).items():
                try:
                    rows.put(name, i, index, self._apply_augmentations(name, raw, position, rngs))
                except Exception as error:
                    errors.append(ReadError(index, f"{name} of record {index}: {type(error).__name__}: {error}"))
            for name, value in record.targets.items():
                if value is None or name not in targets:
                    continue
                spec = self._targets[name]
                if problem := find_target_problem(value, spec):
                    errors.append(InvalidTarget(f"target {name!r} of record {index} {problem}"))
                    continue
                targets[name].values[i], targets[name].weight[i] = spec.standardise(value), 1.0
        return Batch(rows.inputs, targets, ids, np.asarray(step, np.int32)), tuple(errors)

    def ids(self, step: int) -> np.ndarray:
        """Returns the example ids of a data step, int32 [B]: record index + epoch * split size, and -1 for padding."""
        size = len(self._source)
        indices, epochs = self._sampler(int(step), self._rows)
        # The epoch wraps around before the id overflows int32.
        ids = indices.astype(np.int64) + size * (np.asarray(epochs, np.int64) % (MAX_STEP // size))
        return np.where(indices >= 0, ids, -1).astype(np.int32)

    def _read(self, index: int, errors: list[ReadError | InvalidTarget]) -> Record:
        try:
            return self._source[index]
        # Readers of damaged files raise arbitrary exceptions; one bad file must not end a long run.
        except Exception as error:
            errors.append(ReadError(index, f"record {index}: {type(error).__name__}: {error}"))
            return Record({}, {})

    def _select_inputs(self, record: Record, position: int, rngs: _BatchRNG) -> dict[str, Any]:
        """Returns the record's raw inputs that the model uses, after modality dropout."""
        raws = {name: raw for name, raw in record.inputs.items() if raw is not None and name in self._names}
        if self._modality_dropout:
            for name in sample_dropped(self._modality_dropout, raws, rngs(_DROPOUT_KEY, position)):
                del raws[name]
        return raws

    def _apply_augmentations(self, name: str, raw: Any, position: int, rngs: _BatchRNG) -> Any:
        for index, augmentation in enumerate(self._augment.get(name, ())):
            raw = augmentation(raw, rngs(_AUGMENT_KEY, position, f"{name}/{index}"))
        return raw


class _BatchRNG:
    """Random generators of one batch. Each call resets the one shared generator, so use it before the next call."""

    def __init__(self, seed: int, step: int):
        self._seed, self._step = seed % 2**64, step
        self._generator = np.random.Generator(np.random.Philox(0))
        self._state: Any = self._generator.bit_generator.state

    def __call__(self, key: int, position: int, name: str = "") -> np.random.Generator:
        """Returns a generator that depends only on (seed, step, key, position, name).

        Its draws equal those of a new `Philox(key, counter)`; resetting the state takes a quarter of the time.
        """
        self._state["state"]["key"][:] = self._seed, key
        self._state["state"]["counter"][:] = 0, position, self._step, zlib.crc32(name.encode())
        self._generator.bit_generator.state = self._state
        return self._generator
