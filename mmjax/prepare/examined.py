"""Everything that was found about the rows of a source, column by column, and which of them are still wanted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.prepare.compare import compare_pairs, read_scores, write_pairs
from mmjax.prepare.examine import read_part, read_rows, write_arrays
from mmjax.prepare.job import CHUNK, Job
from mmjax.prepare.kinds.base import Unreadable, category_name
from mmjax.prepare.sources.folder import SPLIT_ALIASES

Run = Callable[[str, Callable[..., None], Sequence[tuple]], None]
"""(what to say, function, arguments of each call): calls the function for all, somewhere, in any order."""


class PairScorer(Protocol):
    """A model that tells pairs of inputs from other pairs.

    Attributes:
      identity: names the model.
      pairs: (name of an input, name of another one) of each comparison that it makes.
    """

    identity: str

    @property
    def pairs(self) -> Sequence[tuple[str, str]]: ...

    def embed(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """{pair: two arrays [rows, width]} of rows {input: raw data or None}; NaN where a row lacks an input."""


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
      aligner: what says whether inputs belong together, if the user gave something that does.
      not_judged: {name of a check: why it said nothing}.
    """

    def __init__(self, job: Job, run: Run, aligner: PairScorer | None = None):
        self.job, self._run, self.aligner = job, run, aligner
        self.not_judged: dict[str, str] = {}
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
                self.splits.append(SPLIT_ALIASES.get((split or "").lower(), split))
                self.groups.append(group)
                for name, values in measured.items():
                    self._take(number * CHUNK + at, name, values)

        for name, measures in self.words.items():
            for measure, words in measures.items():
                # Where there are words, numbers are names too.
                numbers = self.numbers[name].pop(measure, np.zeros(0))
                for row in np.flatnonzero(~np.isnan(numbers)):
                    words[row] = category_name(numbers[row])

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
            elif self.job.kinds[name].keeps_strings:
                self.words[name].setdefault(measure, [None] * self.job.rows)[row] = value

    def could_not_judge(self, check: str, why: str) -> None:
        """Notes why a check said nothing of some rows."""
        before = self.not_judged.get(check, "")
        if why not in before:
            self.not_judged[check] = f"{before}; {why}" if before else why

    def classes(self, name: str) -> list[str | None]:
        """The class of each row, of a label."""
        return self.words[name].get("class", [None] * self.job.rows)

    def quality(self, row: int) -> float:
        """How much a row has that its near duplicates may not have."""
        total = 0.0
        for column in self.job.inputs:
            if self.present[column.name][row]:
                numbers = {measure: values[row] for measure, values in self.numbers[column.name].items()}
                total += self.job.kinds[column.name].quality(numbers)
        return total

    def similarity(self, name: str) -> np.ndarray:
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
        return joined(self.job.rows, pairs[self.near(name, 0, pairs)])

    def near(self, name: str, turn: int, pairs: np.ndarray) -> np.ndarray:
        """bool [n]: of pairs of rows, int64 [n, 2], which are near duplicates in a column; see `write_pairs`."""
        parts = write_pairs(self.job.work, name, turn, pairs)
        self._run(f"Comparing {name}", compare_pairs, [(self.job, name, turn, part) for part in range(parts)])
        scores = read_scores(self.job.work, name, turn, parts)
        return scores >= getattr(self.job.kinds[name].config, "similarity", 1.0)

    def features(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of rows, float16 [rows, n])."""
        return read_part(self.job.work, self.job.chunks, name, "featured", "features")

    def embedded(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{pair: (numbers of rows, float32 [rows, width] of either input)} of the rows that are alive and have both."""
        if self.aligner is None:
            return {}
        names = [column.name for column in self.job.inputs]
        pairs = [pair for pair in self.aligner.pairs if set(pair) <= set(names)]
        folder = self.job.work / "aligned" / hashlib.sha256(self.aligner.identity.encode()).hexdigest()
        parts = [self._embed(folder, chunk, pairs) for chunk in range(self.job.chunks)]
        found = {}
        for pair in pairs:
            one, other = (np.concatenate([part["+".join(pair) + f"/{side}"] for part in parts]) for side in (0, 1))
            rows = np.flatnonzero(self.alive & ~np.isnan(one).any(axis=1) & ~np.isnan(other).any(axis=1))
            found[pair] = rows, one[rows], other[rows]
        return found

    def _embed(self, folder: pathlib.Path, chunk: int, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        """{"ONE+OTHER/side": float32 [rows of the chunk, width]}; what was embedded already stays."""
        path = folder / f"{chunk:07}.npz"
        if not path.exists():
            # Every row that can be read, so that it does not depend on what other checks drop.
            summary = {
                name: self.job.kinds[name].summarise(self.numbers[name], self.words[name])
                for name in {name for pair in pairs for name in pair}
            }
            rows = range(chunk * CHUNK, min(self.job.rows, (chunk + 1) * CHUNK))
            assert self.aligner is not None
            embedded = self.aligner.embed([self._restored(row, summary) for row in rows])
            arrays = {"+".join(pair) + f"/{side}": embedded[pair][side] for pair in pairs for side in (0, 1)}
            write_arrays(path, arrays)
        with np.load(path) as arrays:
            return dict(arrays)

    def _restored(self, number: int, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a row as training would read them."""
        row, restored = self.job.row(number), {}
        for column in self.job.inputs:
            if column.name in summary and self.present[column.name][number]:
                kind = self.job.kinds[column.name]
                with contextlib.suppress(Unreadable):
                    restored[column.name] = kind.restore(
                        kind.stored(self.job.decode(row, column), summary[column.name])
                    )
        return restored


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
