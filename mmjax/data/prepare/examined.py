"""Everything that was found about the rows of a source, column by column, and which of them are still wanted."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.data.prepare.compare import compare_pairs, read_scores, write_pairs
from mmjax.data.prepare.examine import read_part, read_rows
from mmjax.data.prepare.job import CHUNK, Job
from mmjax.data.prepare.kinds.base import name_of
from mmjax.data.prepare.sources.folder import SPLITS

Run = Callable[[str, Callable[..., None], Sequence[tuple]], None]
"""(what to say, function, arguments of each call): calls the function for all, somewhere, in any order."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about a row that a person should know.

    Attributes:
      row: its number.
      check: what was found, by its name.
      why: in words, for people.
      column: where, "" for the whole row.
      other: the number of the row that this one is like, if it is about two.
    """

    row: int
    check: str
    why: str
    column: str = ""
    other: int | None = None


class Examined:
    """What the chunks hold. Numbers become arrays; words stay in the files, once they have been judged.

    Attributes:
      keys, splits, groups: of each row; None where a row has no split or group.
      numbers: {column: {measure: float64 [rows], NaN where the row lacks it}}.
      words: {column: {measure: [word or None]}}, of the kinds that keep them.
      present: {column: bool [rows]}, whether the row has it and it could be read.
      findings: of values by themselves.
      alive: bool [rows], which rows nothing has dropped so far.
    """

    def __init__(self, job: Job, run: Run):
        self.job, self._run = job, run
        self._alike: dict[str, np.ndarray] = {}
        self.keys: list[str] = []
        self.splits: list[str | None] = []
        self.groups: list[str | None] = []
        self.findings: list[Finding] = []
        names = [column.name for column in job.layout.columns]
        self.numbers: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
        self.words: dict[str, dict[str, list[str | None]]] = {name: {} for name in names}
        self.present = {name: np.zeros(job.rows, bool) for name in names}
        self.alive = np.ones(job.rows, bool)
        for number in range(job.chunks):
            for at, (key, measured, split, group) in enumerate(read_rows(job.work, number)):
                self.keys.append(key)
                self.splits.append(SPLITS.get((split or "").lower(), split))
                self.groups.append(group)
                for name, values in measured.items():
                    self._take(number * CHUNK + at, name, values)

        for name, measures in self.words.items():
            for measure, words in measures.items():
                # Where there are words, numbers are names too.
                numbers = self.numbers[name].pop(measure, np.zeros(0))
                for row in np.flatnonzero(~np.isnan(numbers)):
                    words[row] = name_of(numbers[row])

    def _take(self, row: int, name: str, values: dict[str, Any] | None) -> None:
        if values is None:
            return
        if "unreadable" in values:
            self.findings.append(Finding(row, "unreadable", values["unreadable"], name))
            return
        self.present[name][row] = True
        for fault, why in self.job.kinds[name].faults(values).items():
            self.findings.append(Finding(row, fault, why, name))
        for measure, value in values.items():
            if isinstance(value, (int, float)):
                numbers = self.numbers[name]
                if measure not in numbers:
                    numbers[measure] = np.full(self.job.rows, np.nan)
                numbers[measure][row] = value
            elif self.job.kinds[name].keeps_words:
                self.words[name].setdefault(measure, [None] * self.job.rows)[row] = value

    def classes(self, name: str) -> list[str | None]:
        """The class of each row, of a label."""
        return self.words[name].get("class", [None] * self.job.rows)

    def worth(self, row: int) -> float:
        """How much a row has that its near duplicates may not have."""
        total = 0.0
        for column in self.job.inputs:
            if self.present[column.name][row]:
                numbers = {measure: values[row] for measure, values in self.numbers[column.name].items()}
                total += self.job.kinds[column.name].worth(numbers)
        return total

    def alike(self, name: str) -> np.ndarray:
        """int64 [rows]: rows with one number have near duplicates in a column, or a chain of them.

        Computed once, among the rows that are alive at that time.
        """
        if name not in self._alike:
            self._alike[name] = self._compared(name)
        return self._alike[name]

    def _compared(self, name: str) -> np.ndarray:
        kind = self.job.kinds[name]
        rows, hashes = read_part(self.job.work, self.job.chunks, name, "which", "hashes")
        wanted = self.alive[rows] & self.present[name][rows]
        rows, hashes = rows[wanted], hashes[wanted]
        pairs = rows[kind.candidates(hashes)] if len(rows) else np.zeros((0, 2), np.int64)
        parts = write_pairs(self.job.work, name, pairs)
        self._run(f"Comparing {name}", compare_pairs, [(self.job, name, part) for part in range(parts)])
        same = pairs[read_scores(self.job.work, name, parts) >= getattr(kind.config, "alike", 1.0)]
        return joined(self.job.rows, same)

    def features(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of rows, float16 [rows, n])."""
        return read_part(self.job.work, self.job.chunks, name, "featured", "features")


def joined(count: int, pairs: Iterable[Sequence[int]]) -> np.ndarray:
    """int64 [count]: the smallest number of all that are connected with each by pairs."""
    parents = list(range(count))

    def root(item: int) -> int:
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    for one, other in pairs:
        first, second = sorted((root(int(one)), root(int(other))))
        parents[second] = first
    return np.asarray([root(item) for item in range(count)], np.int64)


def members(groups: Iterable[Any], rows: Iterable[int]) -> Iterator[list[int]]:
    """The rows of each group that has more than one; the order is that of the rows."""
    found: dict[Any, list[int]] = collections.defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        found[group].append(row)
    return (several for several in found.values() if len(several) > 1)
