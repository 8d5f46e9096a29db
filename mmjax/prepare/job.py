"""What every process of a preparation has to know: the source, its columns, the options, and the folder of the work."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import write_json
from mmjax.prepare import files
from mmjax.prepare.columns import Column, Layout
from mmjax.prepare.kinds import Kind, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.sources import Row, Source

CHUNK = 64
"""Rows that are examined together: what is lost at most when a process dies."""

# Raised whenever what is kept of an examined row changes, so that nobody goes on with old ones.
_VERSION = 7


@dataclasses.dataclass(frozen=True)
class Job:
    """One preparation; it can be pickled.

    Attributes:
      work: the folder for everything that is not finished.
      rows: how many the source has.
    """

    source: Source
    layout: Layout
    config: PrepareConfig
    work: pathlib.Path
    rows: int

    @property
    def chunks(self) -> int:
        return -(-self.rows // CHUNK)

    @functools.cached_property
    def kinds(self) -> dict[str, Kind]:
        """{name of a column: its kind, with the user's thresholds}."""
        return {column.name: self.config.kind(column.kind) for column in self.layout.columns}

    @property
    def inputs(self) -> list[Column]:
        return [column for column in self.layout.columns if not column.target]

    @property
    def targets(self) -> list[Column]:
        return [column for column in self.layout.columns if column.target]

    def row(self, number: int) -> Row:
        """The row as it was listed."""
        begin, end = self._index[number : number + 2]
        with (self.work / "index.jsonl").open("rb") as file:
            file.seek(begin)
            key, values = json.loads(file.read(int(end - begin)))
        return Row(key, values)

    @functools.cached_property
    def _index(self) -> np.ndarray:
        return np.load(self.work / "index.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # An open file does not travel.
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "kinds")}

    def decode(self, row: Row, column: Column) -> Any:
        """What is kept of the raw data of a column, None where the row lacks it. Raises `Unreadable`."""
        raw = self.read(row, column)
        return None if raw is None else self.kinds[column.name].reduced(raw)

    def read(self, row: Row, column: Column) -> Any:
        """The raw data of a column, None where the row lacks it. Raises `Unreadable`."""
        kind = self.kinds[column.name]
        values = {name: row.values.get(name) for name in column.sources}
        if all(value is None for value in values.values()):
            return None
        try:
            if kind.multi_column:
                return kind.decode(values)
            value = self.source.load(values[column.sources[0]], kind)
            return None if value is None else kind.decode(value)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise Unreadable(error.strerror or "there is no such file") from None
        except OSError as error:
            # A file's name may be one that no system allows. What a network does not give now, it may give later.
            if isinstance(values[column.sources[0]], str) and not files.is_address(self.config.source):
                raise Unreadable(str(error)) from None
            raise


def list_rows(source: Source, config: PrepareConfig, layout: Layout, work: pathlib.Path) -> tuple[int, str]:
    """Writes the rows of a source to `work`, and returns their number and the sha256 of all that was listed.

    Raises:
      UserError: if there are none, or two have one key.
    """
    work.mkdir(parents=True, exist_ok=True)
    digest, offsets, seen = hashlib.sha256(), [0], set()
    with (work / "index.jsonl").open("wb") as file:
        # What a source unpacks stays beside, where it is found when the list has moved.
        for row in source.rows(work.parent):
            key = row.key if not layout.key else str(row.values.get(layout.key))
            if key in seen:
                where = f"--key={layout.key}" if layout.key else "--source"
                raise UserError(where, f"two rows have the key {key!r}", "name a column without repetitions by --key")
            seen.add(key)
            line = json.dumps([key, dict(row.values)]).encode() + b"\n"
            file.write(line)
            digest.update(line)
            offsets.append(offsets[-1] + len(line))
    if len(offsets) == 1:
        raise UserError("--source", f"{config.source!r} has no rows", "give a source with examples")
    np.save(work / "index.npy", np.asarray(offsets, np.int64))
    return len(offsets) - 1, digest.hexdigest()


def identity(listing: str, layout: Layout, config: PrepareConfig) -> str:
    """Names everything that what is measured depends on: not the thresholds, nor how it is split and stored."""
    columns = [dataclasses.asdict(column) for column in layout.columns]
    text = json.dumps([_VERSION, config.source, config.format, listing, columns, config.reduce], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def decisions_identity(measured: str, config: PrepareConfig, aligner: str = "") -> str:
    """Names everything that the finished shards depend on; `aligner` names the model that pairs are judged by."""
    text = json.dumps([measured, dataclasses.asdict(config), aligner], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_summary(work: pathlib.Path, summary: Mapping[str, Any]) -> None:
    write_json(work / "summary.json", summary)
