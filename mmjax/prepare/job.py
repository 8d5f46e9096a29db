"""State shared by all processes of a preparation: source, columns, options and work folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.modalities.names import printable
from mmjax.prepare import files
from mmjax.prepare.columns import Column, Layout
from mmjax.prepare.kinds import Kind, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.sources import Row, Source

CHUNK = 64
"""Rows per chunk. A killed process loses at most one chunk of work."""

# Increase when the content of chunk files changes, so that old work is not reused.
_VERSION = 9


@dataclasses.dataclass(frozen=True)
class Job:
    """One preparation. Picklable.

    Attributes:
      source: source of the rows.
      layout: input and target columns.
      config: options.
      work: folder of unfinished work.
      num_rows: number of rows of the source.
    """

    source: Source
    layout: Layout
    config: PrepareConfig
    work: pathlib.Path
    num_rows: int

    @property
    def num_chunks(self) -> int:
        """Number of chunks of `CHUNK` rows."""
        return -(-self.num_rows // CHUNK)

    @functools.cached_property
    def kinds(self) -> dict[str, Kind]:
        """Kind of each column, with the user's thresholds: `{column: kind}`."""
        kinds = {column.name: self.config.kind(column.kind) for column in self.layout.columns}
        for column in self.layout.columns:
            kinds[column.name].paths = column.paths
        return kinds

    @property
    def inputs(self) -> list[Column]:
        """Input columns."""
        return [column for column in self.layout.columns if not column.target]

    @property
    def targets(self) -> list[Column]:
        """Target columns."""
        return [column for column in self.layout.columns if column.target]

    def lost_faults(self, name: str) -> tuple[str, ...]:
        """Faults of a column that discard the value but keep its row. `name` may be "", for no column."""
        faults = self.kinds[name].value_faults if name else ()
        return tuple(fault for fault in faults if fault not in (*self.config.keep, *self.config.drop))

    def row(self, index: int) -> Row:
        """Reads a row of the listing."""
        start, end = self._offsets[index : index + 2]
        with (self.work / "index.jsonl").open("rb") as file:
            file.seek(start)
            key, values = json.loads(file.read(int(end - start)))
        return Row(key, values)

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        """Byte offsets of the rows in the listing, int64 [rows + 1]."""
        return np.load(self.work / "index.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A memory map cannot be pickled.
        return {name: value for name, value in self.__dict__.items() if name not in ("_offsets", "kinds")}

    def decode(self, row: Row, column: Column) -> Any:
        """Returns the decoded and reduced value, or None if the row lacks it.

        Raises:
          Unreadable: if the value cannot be decoded.
        """
        raw = self.read(row, column)
        with unreadable_if_fails():
            return None if raw is None else self.kinds[column.name].reduced(raw)

    def read(self, row: Row, column: Column) -> Any:
        """Returns the decoded value without reducing it, or None if the row lacks it.

        Raises:
          Unreadable: if the value cannot be decoded.
        """
        kind = self.kinds[column.name]
        values = {name: row.values.get(name) for name in column.sources}
        if all(value is None for value in values.values()):
            return None
        if kind.multi_column:
            with unreadable_if_fails():
                return kind.decode(values)
        value = values[column.sources[0]]
        if column.separator and isinstance(value, str):
            value = [name for name in value.split(column.separator) if name.strip()]
        value = self._load(row, value, kind)
        with unreadable_if_fails():
            return None if value is None else kind.decode(value)

    def _load(self, row: Row, value: Any, kind: Kind) -> Any:
        try:
            return self.source.load(value, kind)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise Unreadable(error.strerror or "no such file") from None
        except (UserError, Unreadable):
            raise
        # Store libraries raise errors of many types.
        except Exception as error:
            reason = getattr(error, "strerror", "") or f"{type(error).__name__}: {error}"
            if not files.is_remote(self.config.source):
                raise Unreadable(reason) from None
            # Network errors may be temporary, so they do not make a value unreadable.
            problem = f"{row.key!r} cannot be read: {reason}"
            raise UserError("--source", problem, "run the same command again to continue") from None


@contextlib.contextmanager
def unreadable_if_fails() -> Iterator[None]:
    """Converts any exception but UserError to Unreadable: damaged files make decoders raise errors of any type."""
    try:
        yield
    except (Unreadable, UserError):
        raise
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def list_rows(source: Source, config: PrepareConfig, layout: Layout, work: pathlib.Path) -> tuple[int, str]:
    """Writes the rows of a source to `work/index.jsonl`, and their byte offsets to `work/index.npy`.

    Returns:
      (number of rows, sha256 of the listing).

    Raises:
      UserError: if the source has no rows or a key occurs twice.
    """
    work.mkdir(parents=True, exist_ok=True)
    digest, offsets, seen = hashlib.sha256(), [0], set()
    with (work / "index.jsonl").open("wb") as file:
        # Sources unpack to the parent folder, since `work` is renamed later.
        for row in source.rows(work.parent):
            key = printable(row.key if not layout.key else str(row.values.get(layout.key)))
            if key in seen:
                where = f"--key={layout.key}" if layout.key else "--source"
                raise UserError(where, f"two rows have the key {key!r}", "give a column of unique values: --key=COLUMN")
            seen.add(key)
            line = json.dumps([key, dict(row.values)]).encode() + b"\n"
            file.write(line)
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
    if len(offsets) == 1:
        raise UserError("--source", f"{config.source!r} has no rows", "give a source with examples")
    np.save(work / "index.npy", np.asarray(offsets, np.int64))
    return len(offsets) - 1, digest.hexdigest()


def examine_fingerprint(listing: str, layout: Layout, config: PrepareConfig) -> str:
    """Hashes everything that the chunk files depend on. Excludes thresholds, splits and shard sizes.

    Args:
      listing: sha256 of the listing.
      layout: input and target columns.
      config: options.
    """
    columns = [dataclasses.asdict(column) for column in layout.columns]
    # Another version of this library may hash texts differently.
    versions = [_VERSION, importlib.metadata.version("rensa")]
    options = [config.source, config.format, config.allow_outside, config.reduce]
    text = json.dumps([versions, listing, columns, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def decision_fingerprint(examined: str, config: PrepareConfig, aligner: str = "") -> str:
    """Hashes everything that the finished shards depend on.

    Args:
      examined: result of `examine_fingerprint`.
      config: options.
      aligner: `PairScorer.identity`, "" without one.
    """
    text = json.dumps([examined, dataclasses.asdict(config), aligner], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
