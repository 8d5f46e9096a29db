"""Which examples share which rows: a pure function of (seed, data step), made from their lengths alone.

Another order's stream of examples is cut into windows. The examples of a window are packed into rows, the longest first
and each into the first row that has room for it (Johnson, Near-Optimal Bin Packing Algorithms, 1973), and the rows of a
window are shuffled. Data steps take the rows one after the other, so a window may begin in one step and end in a later
one. How many rows a window has follows from lengths, and so does where each step begins: there is nothing to save.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmjax.data.samplers import IndexSampler

# Separates the draw of the rows' order from others that use the same seed.
_ROWS = 0x726F77732121212B
# Windows that are packed together, which takes hardly longer than one of them; so many chunks of them are kept.
_CHUNK = 4
_KEPT = 2


class PackedSampler:
    """An order of slots: row r of a batch holds up to E examples, and they stand one after the other.

    Args:
      order: the stream of examples, in "batches" of a window's size: step k is window k.
      lengths: int [records, inputs], the room that each record takes in each input.
      budgets: int [inputs], the room of a row.
      slots: E.
      window: examples of a window.
      rows: of a data step.
      seed: of the order of the rows.
      windows: how many there are; None for without end.
    """

    def __init__(
        self,
        order: IndexSampler,
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
        self._order, self._seed = order, seed
        # A slot is one more thing of which a row has so many.
        self._needs = np.concatenate([lengths, np.ones((len(lengths), 1), np.int64)], axis=1).astype(np.int32)
        self._budgets = np.append(budgets, slots).astype(np.int32)
        self._slots, self._window, self._rows, self._windows = slots, window, rows, windows
        self._ends = [0]
        self._chunks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for all slots of these rows, the number of the record, -1 for none, and its epoch."""
        wanted = step * self._rows + np.asarray(rows, np.int64)
        numbers = np.full((len(wanted), self._slots), -1, np.int64)
        epochs = np.zeros_like(numbers)
        last = int(wanted.max(initial=0))
        while self._ends[-1] <= last and not self._complete:
            self._chunk(len(self._ends) - 1)
        chunks = np.searchsorted(self._ends, wanted, side="right") - 1
        for chunk in np.unique(chunks[wanted < self._ends[-1]]).tolist():
            here = chunks == chunk
            found, when = self._chunk(chunk)
            numbers[here], epochs[here] = (each[wanted[here] - self._ends[chunk]] for each in (found, when))
        return numbers.reshape(-1), epochs.reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": {}}

    @property
    def steps(self) -> int:
        """Data steps until a stream that ends has been seen."""
        while not self._complete:
            self._chunk(len(self._ends) - 1)
        return -(-self._ends[-1] // self._rows)

    @property
    def examples_per_row(self) -> float:
        """Examples in a row, on average over the first windows."""
        found, _ = self._chunk(0)
        return float((found >= 0).sum() / len(found))

    @property
    def _complete(self) -> bool:
        return self._windows is not None and (len(self._ends) - 1) * _CHUNK >= self._windows

    def _chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots [rows, E] of a chunk of windows and their epochs; each chunk is planned after the one before it."""
        if chunk not in self._chunks:
            planned = self._plan(chunk)
            if chunk == len(self._ends) - 1:
                self._ends.append(self._ends[-1] + len(planned[0]))
            while len(self._chunks) >= _KEPT:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[chunk] = planned
        return self._chunks[chunk]

    def _plan(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        first = chunk * _CHUNK
        last = first + _CHUNK if self._windows is None else min(first + _CHUNK, self._windows)
        drawn = [self._order(window, np.arange(self._window)) for window in range(first, last)]
        numbers, epochs = (np.stack(each) for each in zip(*drawn, strict=True))
        there = numbers >= 0
        placed = first_fit(np.where(there[..., None], self._needs[numbers], 0), self._budgets)
        planned = []
        for offset, window in enumerate(range(first, last)):
            mine = np.flatnonzero(there[offset])
            # Stable, so that the examples of a row keep the order of the stream.
            mine = mine[np.argsort(placed[offset, mine], kind="stable")]
            row = placed[offset, mine]
            slot = np.arange(len(row)) - np.searchsorted(row, row)
            rows = np.full((2, row.max(initial=-1) + 1, self._slots), -1, np.int64)
            rows[:, row, slot] = numbers[offset, mine], epochs[offset, mine]
            # Packing puts the long ones first: no step is to have them all.
            key = [self._seed % 2**64, _ROWS]
            draws = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, window, 0]))
            planned.append(rows[:, draws.permutation(rows.shape[1])])
        slots, when = np.concatenate(planned, axis=1)
        return slots, np.maximum(when, 0)


def first_fit(needs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """First fit decreasing for many windows at once, for bins of several resources.

    Args:
      needs: int [windows, examples, resources], none above its budget.
      budgets: int [resources], of each row.

    Returns:
      int [windows, examples], the row that each example goes to; rows count from 0 in each window.
    """
    windows, examples, _ = needs.shape
    # The longest is the one that takes the largest share of what it takes most of.
    longest = np.argsort(-(needs / budgets).max(axis=2), axis=1, kind="stable")
    each = np.arange(windows)
    left = np.broadcast_to(budgets[:, None, None], (len(budgets), windows, examples)).copy()
    placed = np.zeros((windows, examples), np.int64)
    opened = 1
    for turn in range(examples):
        which = longest[:, turn]
        need = needs[each, which].T
        # One row more than are opened: there is always room in it.
        fits = (left[:, :, : opened + 1] >= need[:, :, None]).all(axis=0)
        row = fits.argmax(axis=1)
        left[:, each, row] -= need
        placed[each, which] = row
        opened = max(opened, int(row.max()) + 1)
    return placed
