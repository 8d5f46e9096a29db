"""Measurements and findings of all rows of a source, by column, and the mask of rows not dropped so far."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mmjax.modalities.names import canonical_name
from mmjax.prepare.compare import compare_pairs, read_scores, write_pairs
from mmjax.prepare.examine import read_part, read_rows, read_signature, write_arrays
from mmjax.prepare.job import CHUNK, Job
from mmjax.prepare.kinds.base import Unreadable
from mmjax.prepare.sources.folder import SPLIT_ALIASES

T = TypeVar("T")

RunTasks = Callable[[str, Callable[..., None], Sequence[tuple]], None]
"""(title, function, argument tuples): calls `function(*arguments)` for each tuple, in any order and process."""


class PairScorer(Protocol):
    """A model trained to match pairs of inputs.

    Attributes:
      identity: name of the model and its parameters.
    """

    identity: str

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """Pairs of inputs that the model compares."""

    def embed(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """Embeds rows `{input: raw data or None}`.

        Returns:
          {pair: (embeddings of the first input, of the second)}, each [rows, width], NaN where a row lacks the input.
        """


class PairEmbeddings(NamedTuple):
    """Embeddings of two inputs, for the rows that have both.

    Attributes:
      rows: int64 [n], row indices.
      first, second: float32 [n, width], embeddings of each input.
    """

    rows: np.ndarray
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class Finding:
    """A suspected or certain fault of a row.

    Attributes:
      row: row index.
      check: name of the finding, for example "duplicate".
      why: explanation for the user.
      column: affected column, "" for the whole row.
      other: index of the matching row, for findings about two rows.
      exact: True if the two rows are equal; None otherwise.
    """

    row: int
    check: str
    why: str
    column: str = ""
    other: int | None = None
    exact: bool | None = None


class Examined:
    """Measurements of all rows, loaded from the chunk files.

    Attributes:
      keys: key of each row.
      splits, groups: split and group of each row, None where the row has none.
      measures: {column: {measure: float64 [rows], NaN where missing}}, numeric measures.
      categories: {column: {measure: [rows] of str or None}}, categorical measures of kinds with `keeps_strings`.
        Strings of other kinds are discarded after `Kind.faults`, to save memory.
      present: {column: bool [rows]}, true where the row has a readable value.
      findings: findings about single values.
      alive: bool [rows], true for rows not dropped so far.
      aligner: model that scores pairs of inputs, None without `--alignment`.
      not_judged: {check: reason}, for checks that could not judge some rows.
    """

    def __init__(self, job: Job, run_tasks: RunTasks, aligner: PairScorer | None = None):
        self.job, self._run_tasks, self.aligner = job, run_tasks, aligner
        self.not_judged: dict[str, str] = {}
        self._cache: dict[str, Any] = {}
        self._pair_filters: dict[str, Callable[[bytes, bytes], bool] | None] = {}
        self._duplicate_groups: dict[str, np.ndarray] = {}
        self.keys: list[str] = []
        self.splits: list[str | None] = []
        self.groups: list[str | None] = []
        self.findings: list[Finding] = []
        names = [column.name for column in job.layout.columns]
        self.measures: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
        self.categories: dict[str, dict[str, list[str | None]]] = {name: {} for name in names}
        self.present = {name: np.zeros(job.num_rows, bool) for name in names}
        self.alive = np.ones(job.num_rows, bool)
        for chunk in range(job.num_chunks):
            for row, examined in enumerate(read_rows(job.work, chunk), start=chunk * CHUNK):
                self.keys.append(examined.key)
                self.splits.append(SPLIT_ALIASES.get((examined.split or "").lower(), examined.split))
                self.groups.append(examined.group)
                for name, measured in examined.measured.items():
                    self._add(row, name, measured)
        # A measure with a string in any row is categorical in all rows.
        for name, categories in self.categories.items():
            for measure, labels in categories.items():
                values = self.measures[name].pop(measure, np.zeros(0))
                for index in np.flatnonzero(~np.isnan(values)):
                    labels[index] = canonical_name(values[index])

    def _add(self, row: int, name: str, measured: dict[str, Any] | None) -> None:
        """Adds the measurements of one value."""
        if measured is None:
            return
        if "unreadable" in measured:
            self.findings.append(Finding(row, "unreadable", measured["unreadable"], name))
            return
        self.present[name][row] = True
        for fault, why in self.job.kinds[name].faults(measured).items():
            self.findings.append(Finding(row, fault, why, name))
        for measure, value in measured.items():
            if isinstance(value, (int, float)):
                measures = self.measures[name]
                if measure not in measures:
                    measures[measure] = np.full(self.job.num_rows, np.nan)
                measures[measure][row] = value
            elif self.job.kinds[name].keeps_strings:
                self.categories[name].setdefault(measure, [None] * self.job.num_rows)[row] = value

    def note_not_judged(self, check: str, why: str) -> None:
        """Records why a check could not judge some rows."""
        before = self.not_judged.get(check, "")
        if why not in before:
            self.not_judged[check] = f"{before}; {why}" if before else why

    def classes(self, name: str) -> list[str | None]:
        """Returns the class of each row for a label column, None where missing."""
        return self.categories[name].get("class", [None] * self.job.num_rows)

    def quality(self, row: int) -> float:
        """Returns the total quality of a row's inputs. The near duplicate with the highest quality is kept."""
        total = 0.0
        for column in self.job.inputs:
            if self.present[column.name][row]:
                measures = {measure: values[row] for measure, values in self.measures[column.name].items()}
                total += self.job.kinds[column.name].quality(measures)
        return total

    def near_duplicate_groups(self, name: str) -> np.ndarray:
        """Groups rows that are near duplicates in a column; returns group indices int64 [rows].

        Rows linked by a chain of near duplicates share a group. Computed once, on the rows alive at the first call.
        """
        if name not in self._duplicate_groups:
            self._duplicate_groups[name] = self._group_near_duplicates(name)
        return self._duplicate_groups[name]

    def _group_near_duplicates(self, name: str) -> np.ndarray:
        rows, hashes = read_part(self.job.work, self.job.num_chunks, name, "hashes")
        mask = self.alive[rows] & self.present[name][rows]
        rows, hashes = rows[mask], hashes[mask]
        pairs = rows[self.job.kinds[name].candidates(hashes)] if len(rows) else np.zeros((0, 2), np.int64)
        return connected_components(self.job.num_rows, pairs[self.are_near_duplicates(name, 0, pairs)])

    def are_near_duplicates(self, name: str, round_index: int, pairs: np.ndarray) -> np.ndarray:
        """Compares pairs of rows [n, 2] in a column; returns bool [n]. `round_index` is passed to `write_pairs`."""
        num_parts = write_pairs(self.job.work, name, round_index, pairs)
        tasks = [(self.job, name, round_index, part) for part in range(num_parts)]
        self._run_tasks(f"Comparing {name}", compare_pairs, tasks)
        scores = read_scores(self.job.work, name, round_index, num_parts)
        mask = scores >= getattr(self.job.kinds[name].config, "similarity", 1.0)
        similar = np.flatnonzero(mask).tolist()

        def signatures(pair: int) -> tuple[bytes, bytes]:
            return self.signature(name, int(pairs[pair, 0])), self.signature(name, int(pairs[pair, 1]))

        # Round 0 compares all candidates; the filter is fitted to the similar pairs among them.
        if round_index == 0:
            self._pair_filters[name] = self.job.kinds[name].pair_filter(map(signatures, similar))
        if (are_copies := self._pair_filters.get(name)) is not None:
            mask[similar] = [are_copies(*signatures(pair)) for pair in similar]
        return mask

    def signature(self, name: str, row: int) -> bytes:
        """Reads the signature of a column in one row, b"" if it has none."""
        return read_signature(self.job.work, name, row)

    def cached(self, name: str, function: Callable[[Examined], T]) -> T:
        """Calls `function(self)` once, for results that several checks share."""
        if name not in self._cache:
            self._cache[name] = function(self)
        return self._cache[name]

    def features(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads (row indices int64 [n], features float16 [n, width]) of the rows that have features in a column."""
        return read_part(self.job.work, self.job.num_chunks, name, "features")

    def pair_embeddings(self) -> dict[tuple[str, str], PairEmbeddings]:
        """Embeds the inputs with the aligner. Returns the alive rows that have both inputs, by pair of input names."""
        if self.aligner is None:
            return {}
        names = {column.name for column in self.job.inputs}
        pairs = [pair for pair in self.aligner.pairs if set(pair) <= names]
        folder = self.job.work / "aligned" / hashlib.sha256(self.aligner.identity.encode()).hexdigest()
        chunks = [self._embed(folder, chunk, pairs) for chunk in range(self.job.num_chunks)]
        embeddings = {}
        for pair in pairs:
            first, second = (np.concatenate([arrays["+".join(pair) + f"/{side}"] for arrays in chunks])
                             for side in (0, 1))  # fmt: skip
            rows = np.flatnonzero(self.alive & ~np.isnan(first).any(axis=1) & ~np.isnan(second).any(axis=1))
            embeddings[pair] = PairEmbeddings(rows, first[rows], second[rows])
        return embeddings

    def _embed(self, folder: pathlib.Path, chunk: int, pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        """Embeds the rows of a chunk, or reads earlier embeddings: {"FIRST+SECOND/0 or 1": float32 [rows, width]}."""
        path = folder / f"{chunk:07}.npz"
        if not path.exists():
            # Embed all readable rows, so that the stored result does not depend on other checks.
            summary = {
                name: self.job.kinds[name].summarise(self.measures[name], self.categories[name])
                | self.job.kinds[name].summarise_training(self.measures[name])
                for name in {name for pair in pairs for name in pair}
            }
            rows = range(chunk * CHUNK, min(self.job.num_rows, (chunk + 1) * CHUNK))
            assert self.aligner is not None
            embedded = self.aligner.embed([self._restore(row, summary) for row in rows])
            arrays = {"+".join(pair) + f"/{side}": embedded[pair][side] for pair in pairs for side in (0, 1)}
            write_arrays(path, arrays)
        with np.load(path) as arrays:
            return dict(arrays)

    def _restore(self, index: int, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the inputs of a row as training would read them."""
        row, restored = self.job.row(index), {}
        for column in self.job.inputs:
            if column.name in summary and self.present[column.name][index]:
                kind = self.job.kinds[column.name]
                with contextlib.suppress(Unreadable):
                    stored = kind.stored(self.job.decode(row, column), summary[column.name])
                    restored[column.name] = kind.restore(stored)
        return restored


def connected_components(count: int, pairs: Iterable[Sequence[int]]) -> np.ndarray:
    """Finds the connected components of a graph.

    Args:
      count: number of nodes.
      pairs: edges.

    Returns:
      int64 [count], the smallest node of each node's component.
    """
    import scipy.sparse.csgraph

    first, second = np.asarray([*pairs], np.int64).reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(len(first), bool), (first, second)), (count, count))
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return np.unique(labels, return_index=True)[1][labels].astype(np.int64)


def rows_by_group(groups: Iterable[Any], rows: Iterable[int]) -> Iterator[list[int]]:
    """Yields the rows of each group with at least two rows, in the order of `rows`."""
    members: dict[Any, list[int]] = collections.defaultdict(list)
    for group, row in zip(groups, rows, strict=True):
        members[group].append(row)
    return (group_rows for group_rows in members.values() if len(group_rows) > 1)
