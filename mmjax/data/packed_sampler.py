"""Sample packing: assigns examples to shared rows from their lengths, as a pure function of (seed, data step).

An index sampler's stream of examples is cut into windows. The examples of a window are packed into rows by first fit
decreasing: the largest first, each into the first row with room for it (Johnson, Near-Optimal Bin Packing Algorithms,
1973). The rows of a window are then shuffled. Data steps consume the rows in order, so a window may begin in one step
and end in a later one. The lengths determine the number of rows per window, and thus the window from which each row of
a step comes. A sampler therefore has no state to checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.data.samplers import IndexSampler

# Philox key of the row permutation, so that its draws differ from others with the same seed.
_ROW_KEY = 0x726F77732121212B
# Windows packed in one vectorised call, which takes hardly longer than packing a single one.
_CHUNK_WINDOWS = 4
_CACHED_CHUNKS = 2


class PackedSampler:
    """Samples slots: row r of a batch holds up to E examples, which occupy slots 0, 1, … of the row.

    Args:
      stream: sampler of the examples, whose step k is window k.
      lengths: int [records, inputs], the elements that each record occupies in each input.
      budgets: int [inputs], the elements per row.
      slots: E, the maximum number of examples per row.
      window: examples per window.
      rows: rows per data step.
      seed: seed of the row permutation.
      windows: number of windows; None if endless.
    """

    def __init__(
        self,
        stream: IndexSampler,
        lengths: np.ndarray,
        budgets: np.ndarray,
        slots: int,
        window: int,
        rows: int,
        seed: int,
        windows: int | None = None,
    ):
        if (lengths > budgets).any():
            raise AssertionError("a record is longer than a row")
        self._stream, self._seed = stream, seed
        # Slots are an additional resource: an example needs 1 of a row's E slots.
        self._needs = np.concatenate([lengths, np.ones((len(lengths), 1), np.int64)], axis=1).astype(np.int32)
        self._budgets = np.append(budgets, slots).astype(np.int32)
        self._slots, self._window, self._rows, self._windows = slots, window, rows, windows
        # Global index of the first row of each planned chunk, and of the chunk after the last.
        self._starts = [0]
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (record index, epoch) for all slots of the given rows, [rows * E]; index -1 is an empty slot."""
        global_rows = step * self._rows + np.asarray(rows, np.int64)
        indices = np.full((len(global_rows), self._slots), -1, np.int64)
        epochs = np.zeros_like(indices)
        last = int(global_rows.max(initial=0))
        while self._starts[-1] <= last and not self._complete:
            self._chunk(len(self._starts) - 1)
        chunks = np.searchsorted(self._starts, global_rows, side="right") - 1
        for chunk in np.unique(chunks[global_rows < self._starts[-1]]).tolist():
            mask = chunks == chunk
            offsets = global_rows[mask] - self._starts[chunk]
            indices[mask], epochs[mask] = (values[offsets] for values in self._chunk(chunk))
        return indices.reshape(-1), epochs.reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    @property
    def steps(self) -> int:
        """Number of data steps of a finite stream."""
        while not self._complete:
            self._chunk(len(self._starts) - 1)
        return -(-self._starts[-1] // self._rows)

    @property
    def examples_per_row(self) -> float:
        """Mean examples per row over the first chunk of windows."""
        indices, _ = self._chunk(0)
        return float((indices >= 0).sum() / len(indices))

    @property
    def _complete(self) -> bool:
        return self._windows is not None and (len(self._starts) - 1) * _CHUNK_WINDOWS >= self._windows

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a chunk's record indices and epochs, both int64 [rows, E]; plans new chunks in order."""
        if chunk not in self._cache:
            plan = self._plan(chunk)
            if chunk == len(self._starts) - 1:
                self._starts.append(self._starts[-1] + len(plan[0]))
            while len(self._cache) >= _CACHED_CHUNKS:
                del self._cache[next(iter(self._cache))]
            self._cache[chunk] = plan
        return self._cache[chunk]

    def _plan(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """Packs a chunk's windows into rows."""
        first = chunk * _CHUNK_WINDOWS
        stop = first + _CHUNK_WINDOWS if self._windows is None else min(first + _CHUNK_WINDOWS, self._windows)
        samples = [self._stream(window, np.arange(self._window)) for window in range(first, stop)]
        indices, epochs = (np.stack(arrays) for arrays in zip(*samples, strict=True))
        valid = indices >= 0
        assignment = first_fit_decreasing(np.where(valid[..., None], self._needs[indices], 0), self._budgets)
        packed = []
        for offset, window in enumerate(range(first, stop)):
            examples = np.flatnonzero(valid[offset])
            # Stable, so that the examples of a row keep the order of the stream.
            examples = examples[np.argsort(assignment[offset, examples], kind="stable")]
            row = assignment[offset, examples]
            slot = np.arange(len(row)) - np.searchsorted(row, row)
            rows = np.full((2, row.max(initial=-1) + 1, self._slots), -1, np.int64)
            rows[:, row, slot] = indices[offset, examples], epochs[offset, examples]
            # Shuffle: the first rows hold the longest examples, which would otherwise all fall into the same steps.
            key = [self._seed % 2**64, _ROW_KEY]
            rng = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, window, 0]))
            packed.append(rows[:, rng.permutation(rows.shape[1])])
        indices, epochs = np.concatenate(packed, axis=1)
        return indices, np.maximum(epochs, 0)


def first_fit_decreasing(needs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """First fit decreasing for rows with several resources, vectorised over windows.

    Args:
      needs: int [windows, examples, resources], each at most its budget.
      budgets: int [resources], the capacity of a row.

    Returns:
      int64 [windows, examples], the row of each example, numbered from 0 in each window.
    """
    windows, examples, _ = needs.shape
    # Sort descending by dominant share: max over resources of need / budget.
    order = np.argsort(-(needs / budgets).max(axis=2), axis=1, kind="stable")
    every_window = np.arange(windows)
    free = np.broadcast_to(budgets[:, None, None], (len(budgets), windows, examples)).copy()
    assignment = np.zeros((windows, examples), np.int64)
    opened = 1
    for rank in range(examples):
        example = order[:, rank]
        need = needs[every_window, example].T
        # Include one unopened row, where the example always fits.
        fits = (free[:, :, : opened + 1] >= need[:, :, None]).all(axis=0)
        row = fits.argmax(axis=1)
        free[:, every_window, row] -= need
        assignment[every_window, example] = row
        opened = max(opened, int(row.max()) + 1)
    return assignment
