"""Index samplers: map a data step to the record indices of its batch.

A sampler is a pure function of (seed, data step), so it has no state to checkpoint. The training split is divided into
one or more groups, such as the datasets of a mixture or the classes of a label. Each group is an endless stream of its
records, reshuffled in every epoch, and fills a quota of rows in each batch. Quotas follow weights that may change over
data steps. A group's position in its stream is the sum of its earlier quotas.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# Philox key of the row permutation, so that its draws differ from others with the same seed.
_ROW_KEY = 0x706C616365732121
# Steps whose quotas are computed together. Chunks begin at fixed steps, so that cumulative sums round reproducibly.
_CHUNK = 1024
# Absorbs float error, so that a cumulative sum just below an integer is not rounded down.
_EPSILON = 1e-9

Breakpoints = Sequence[tuple[float, float]]
"""Piecewise-linear weight schedule: (data step, weight), sorted by step, constant beyond both ends."""


class IndexSampler(Protocol):
    """Maps (data step, rows) to record indices. Must be picklable: worker processes call it too."""

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (record index, epoch) for the given rows of the step's batch; index -1 is padding."""


class SequentialSampler:
    """Yields records 0, 1, … once in order, then padding."""

    def __init__(self, size: int, batch_size: int):
        self._size, self._batch_size = size, batch_size

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices = step * self._batch_size + rows
        return np.where(indices < self._size, indices, -1), np.zeros_like(indices)


class MixtureSampler:
    """Samples from shuffled, repeated groups; each group fills a quota of every batch.

    The total of the quotas of group k (0, 1, …) never differs by more than k + 1 rows from its exact weighted share, so
    proportions are exact over a run. Each epoch of a group contains each of its records once.

    Example: `batch_size` is 4, group "a" has 3 records and weight 1, group "b" has 6 records and weight 2. The share of
    "a" is 4/3 rows per step:

        step   share of "a" so far   quota of "a", "b"   positions in "a"   positions in "b"
        0      1.33                  1, 3                0                  0 1 2
        1      2.67                  2, 2                1 2                3 4
        2      4.00                  1, 3                3                  5 6 7

    Position p in a group of n records is entry p % n of the permutation of epoch p // n: position 3 in "a" and
    positions 6 and 7 in "b" belong to epoch 1.

    Args:
      groups: {group name: record indices}, all non-empty.
      weights: {group name: weight schedule}; weights need not sum to 1.
      batch_size: rows of the global batch.
      seed: seed of all permutations.

    Raises:
      ValueError: if all weights are 0 at some step.
    """

    def __init__(
        self, groups: Mapping[str, np.ndarray], weights: Mapping[str, Breakpoints], batch_size: int, seed: int
    ) -> None:
        self._names = list(groups)
        self._indices = [np.asarray(indices, np.int64) for indices in groups.values()]
        self._schedules = [np.asarray(weights[name], np.float64).reshape(-1, 2) for name in self._names]
        self._batch_size, self._seed = batch_size, seed
        # State at the start of each chunk known so far: positions in the groups, and rounding remainders.
        self._positions = [np.zeros(len(groups), np.int64)]
        self._remainders = [np.full(len(groups), 0.5)]
        self._cached_chunk: tuple[int, Any, Any] = (-1, None, None)
        # The sum of the schedules is piecewise linear and non-negative: if it is 0 anywhere, it is 0 at a breakpoint.
        breakpoints = np.unique(np.concatenate([schedule[:, 0] for schedule in self._schedules]))
        if not (self._weights_at(breakpoints).sum(0) > 0).all():
            raise ValueError("all weights are 0 at some step; give at least one group a positive weight")

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts, quotas = self._starts_and_quotas(step)
        group = np.repeat(np.arange(len(quotas)), quotas)
        position = np.arange(self._batch_size) - np.repeat(np.cumsum(quotas) - quotas - starts, quotas)
        if len(quotas) > 1:
            # Mix the groups across rows: adjacent rows are on one device, which would otherwise see a single dataset.
            key = [self._seed % 2**64, _ROW_KEY]
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, 0]))
            permutation = rng.permutation(len(group))
            group, position = group[permutation], position[permutation]
        group, position = group[rows], position[rows]
        sizes = np.array([len(indices) for indices in self._indices])
        records = [self._indices[g][self._stream(g)[p]] for g, p in zip(group.tolist(), position.tolist(), strict=True)]
        return np.array(records, np.int64), position // sizes[group]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_streams"}

    def quotas(self, step: int) -> dict[str, int]:
        """Returns {group name: rows of the step's batch}."""
        return dict(zip(self._names, self._starts_and_quotas(step)[1].tolist(), strict=True))

    @functools.cached_property
    def _streams(self) -> dict[int, Sequence[int]]:
        return {}

    def _stream(self, group: int) -> Sequence[int]:
        """Maps a position in the group's endless stream to an index into the group."""
        if group not in self._streams:
            # Imported here because Grain takes two seconds to import.
            import grain

            # Grain accepts 32-bit seeds.
            seed = (self._seed + (zlib.crc32(self._names[group].encode()) if group else 0)) % 2**32
            stream = grain.MapDataset.range(len(self._indices[group])).seed(seed).shuffle().repeat(None)
            self._streams[group] = stream
        return self._streams[group]

    def _weights_at(self, steps: np.ndarray) -> np.ndarray:
        """Interpolates the weight schedules; [groups, steps]."""
        return np.stack([np.interp(steps, schedule[:, 0], schedule[:, 1]) for schedule in self._schedules])

    def _starts_and_quotas(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns each group's stream position before the step and its quota in the step, both [groups]."""
        if len(self._names) == 1:
            return np.array([step * self._batch_size]), np.array([self._batch_size])
        chunk, offset = divmod(step, _CHUNK)
        if self._cached_chunk[0] != chunk:
            while len(self._positions) <= chunk:
                _, quotas, remainders = self._compute_chunk(len(self._positions) - 1)
                self._positions.append(self._positions[-1] + quotas.sum(1))
                self._remainders.append(remainders)
            starts, quotas, _ = self._compute_chunk(chunk)
            self._cached_chunk = (chunk, starts, quotas)
        _, starts, quotas = self._cached_chunk
        return starts[:, offset], quotas[:, offset]

    def _compute_chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Assigns the rows of a chunk's batches, group by group.

        Each group takes its share of the free rows: its weight relative to the groups not yet assigned. The rounding
        remainder carries over to the next step, so a quota is never negative and never exceeds the free rows.

        Returns:
          starts, quotas: int64 [groups, steps].
          remainders: float64 [groups], after the chunk.
        """
        weights = self._weights_at(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))
        unassigned = np.cumsum(weights[::-1], axis=0)[::-1]
        free = np.full(_CHUNK, self._batch_size, np.int64)
        quotas, remainders = np.zeros(weights.shape, np.int64), self._remainders[chunk].copy()
        for group in range(len(weights)):
            if group == len(weights) - 1:
                quotas[group] = free
                break
            share = np.divide(weights[group], unassigned[group], out=np.zeros(_CHUNK), where=unassigned[group] > 0)
            exact = remainders[group] + np.cumsum(free * share)
            rounded = np.floor(exact + _EPSILON).astype(np.int64)
            quotas[group] = np.diff(rounded, prepend=0)
            remainders[group] = exact[-1] - rounded[-1]
            free = free - quotas[group]
        starts = self._positions[chunk][:, None] + np.cumsum(quotas, axis=1) - quotas
        return starts, quotas, remainders
