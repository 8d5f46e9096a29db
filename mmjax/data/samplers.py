"""Which records are in a batch: a pure function of (seed, data step), made from the numbers of the records alone.

The training split is shared out into groups, one or many: the datasets of a mixture, the classes of a label. Each
group is Grain's shuffled range that repeats for ever, shuffled anew in each epoch, and gives each batch its share of
the rows. The shares may change with the data step; how far each group has come follows from them.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# Separates the draw of the places in a batch from others that use the same seed.
_PLACES = 0x706C616365732121
# Steps whose shares are computed together. Sums of shares are rounded alike only if they always begin at the same step.
_CHUNK = 1024
_ROUNDING = 1e-9

Breakpoints = Sequence[tuple[float, float]]
"""A weight over time: (data step, weight) in the order of steps, linear in between and constant beyond."""


class IndexSampler(Protocol):
    """What a batch holds. It can be pickled, as worker processes ask it too."""

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for these rows of the data step's batch, the number of the record, -1 for none, and its epoch."""


class SequentialSampler:
    """Records 0, 1, … in their order, and padding after the last."""

    def __init__(self, size: int, batch_size: int):
        self._size, self._batch_size = size, batch_size

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = step * self._batch_size + rows
        return np.where(numbers < self._size, numbers, -1), np.zeros_like(numbers)


class MixtureSampler:
    """Groups that are shuffled and repeated, each with its share of every batch.

    A group whose share is w has been given the nearest whole number to the sum of w * batch_size so far, give or take
    one for each group before it: over a run shares are exact, and within an epoch of a group each of its records comes
    once.

    Args:
      groups: {name: numbers of its records}, none of them empty.
      weights: {name: weight over time}, which need not add up to 1.
      batch_size: of the global batch.
      seed: of the orders.

    Raises:
      ValueError: if all weights are 0 at some time.
    """

    def __init__(
        self, groups: Mapping[str, np.ndarray], weights: Mapping[str, Breakpoints], batch_size: int, seed: int
    ) -> None:
        self._names = list(groups)
        self._records = [np.asarray(numbers, np.int64) for numbers in groups.values()]
        self._weights = [np.asarray(weights[name], np.float64).reshape(-1, 2) for name in self._names]
        self._batch_size, self._seed = batch_size, seed
        self._counts = [np.zeros(len(groups), np.int64)]
        self._owed = [np.full(len(groups), 0.5)]
        self._shares: tuple[int, Any, Any] = (-1, None, None)
        # The sum of lines is a line: it is 0 nowhere unless it is at a corner.
        corners = np.unique(np.concatenate([points[:, 0] for points in self._weights]))
        if not (self._weights_at(corners).sum(0) > 0).all():
            raise ValueError("all weights are 0 at some step; give one of them a weight")

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        begins, counts = self._batch(step)
        group = np.repeat(np.arange(len(counts)), counts)
        position = np.arange(self._batch_size) - np.repeat(np.cumsum(counts) - counts - begins, counts)
        if len(counts) > 1:
            # Devices hold neighbouring rows: none of them is to have a dataset of its own.
            key = [self._seed % 2**64, _PLACES]
            places = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, 0])).permutation(len(group))
            group, position = group[places], position[places]
        group, position = group[rows], position[rows]
        sizes = np.array([len(records) for records in self._records])
        found = [
            self._records[which][self._shuffled(which)[place]]
            for which, place in zip(group.tolist(), position.tolist(), strict=True)
        ]
        return np.array(found, np.int64), position // sizes[group]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_orders"}

    def share(self, step: int) -> dict[str, int]:
        """How many rows of the batch each group gives."""
        return dict(zip(self._names, self._batch(step)[1].tolist(), strict=True))

    @functools.cached_property
    def _orders(self) -> dict[int, Sequence[int]]:
        return {}

    def _shuffled(self, which: int) -> Sequence[int]:
        """The order of a group's records: position in all its epochs: number within the group."""
        if which not in self._orders:
            # Grain takes two seconds to import, and seeds of 32 bits.
            import grain

            seed = (self._seed + (zlib.crc32(self._names[which].encode()) if which else 0)) % 2**32
            order = grain.MapDataset.range(len(self._records[which])).seed(seed).shuffle().repeat(None)
            self._orders[which] = order
        return self._orders[which]

    def _weights_at(self, steps: np.ndarray) -> np.ndarray:
        """[groups, steps]."""
        return np.stack([np.interp(steps, points[:, 0], points[:, 1]) for points in self._weights])

    def _batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """How many records each group has given before this step, and how many it gives in it."""
        if len(self._names) == 1:
            return np.array([step * self._batch_size]), np.array([self._batch_size])
        chunk, offset = divmod(step, _CHUNK)
        if self._shares[0] != chunk:
            while len(self._counts) <= chunk:
                _, counts, owed = self._split(len(self._counts) - 1)
                self._counts.append(self._counts[-1] + counts.sum(1))
                self._owed.append(owed)
            begins, counts, _ = self._split(chunk)
            self._shares = (chunk, begins, counts)
        _, begins, counts = self._shares
        return begins[:, offset], counts[:, offset]

    def _split(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of a chunk's batches, shared out to one group after the other.

        Of what the groups before it have left, a group gets its weight among those that remain. It is owed the rest of
        each rounding, so that it gets at most what is left and never less than nothing.

        Returns:
          begins, counts: int [groups, steps].
          owed: [groups], after the chunk.
        """
        weights = self._weights_at(np.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK))
        remaining = np.cumsum(weights[::-1], axis=0)[::-1]
        left = np.full(_CHUNK, self._batch_size, np.int64)
        counts, owed = np.zeros(weights.shape, np.int64), self._owed[chunk].copy()
        for which in range(len(weights)):
            if which == len(weights) - 1:
                counts[which] = left
                break
            share = np.divide(weights[which], remaining[which], out=np.zeros(_CHUNK), where=remaining[which] > 0)
            due = owed[which] + np.cumsum(left * share)
            given = np.floor(due + _ROUNDING).astype(np.int64)
            counts[which] = np.diff(given, prepend=0)
            owed[which] = due[-1] - given[-1]
            left = left - counts[which]
        begins = self._counts[chunk][:, None] + np.cumsum(counts, axis=1) - counts
        return begins, counts, owed
