"""Manifests: CSV, TSV, JSONL or Parquet tables with one row per example. Cells are paths, texts, numbers or labels."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from mmjax.errors import UserError
from mmjax.modalities.table import is_missing
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind, Unreadable
from mmjax.prepare.sources.base import Row, Source, load_file, load_folder
from mmjax.prepare.sources.csv_dialect import MAX_LINE, detect_dialect, read_lines

# A Parquet file of a few kilobytes may declare any number of equal rows.
_FREE_ROWS, _ROWS_PER_BYTE = 1_000_000, 64
_BATCH_BYTES = 2**26
_NAMES = ("manifest", "metadata", "data")
# Column name of the empty field after a trailing delimiter.
_UNNAMED = "\0"
# Python's default limit is 131,072 characters per field; texts may be longer.
csv.field_size_limit(MAX_LINE)
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Manifest(Source):
    """A manifest file, or a folder with a manifest.* or metadata.* file. Paths are relative to its folder."""

    def __init__(self, uri: str):
        self.uri = uri if uri.lower().endswith(_SUFFIXES) else _find_manifest(uri)
        self.folder = files.parent(self.uri)

    @staticmethod
    def accepts(uri: str) -> bool:
        return uri.lower().endswith(_SUFFIXES) or files.is_folder(uri) and bool(_find_manifest(uri))

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        if not files.exists(self.uri):
            raise UserError("--source", f"no file {self.uri!r}", "give the path of a manifest or a folder")
        suffix = pathlib.PurePath(self.uri.lower()).suffix
        read = _parquet if suffix == ".parquet" else _json_lines if suffix in (".jsonl", ".ndjson") else _csv
        try:
            for index, values in enumerate(read(self.uri)):
                yield Row(f"{index:08}", values)
        except UserError:
            raise
        # Besides ValueError, csv.Error and OSError, libraries of stores raise errors of their own.
        except Exception as error:
            problem = f"{self.uri!r} cannot be read: {error}"
            raise UserError("--source", problem, "give a CSV, TSV, JSONL or Parquet file in UTF-8") from None

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, str) or not kind.is_path(name := value.strip()):
            return value
        if is_missing(name):
            return None
        if "\0" in name:
            raise Unreadable("the file name contains a null byte")
        # Accept Windows path separators.
        uri = files.join(self.folder, name if "/" in name else name.replace("\\", "/"))
        if problem := self._refusal(uri):
            if kind.inline and not kind.paths:
                return value
            raise Unreadable(problem)
        try:
            if kind.inline and not kind.paths and not files.exists(uri):
                return value
            if kind.takes_folders and files.is_folder(uri):
                return load_folder(uri)
            return load_file({"file": uri, "name": name})
        except UserError as error:
            # A store whose package is missing, or that cannot be read.
            if uri.partition("://")[0] == self.uri.partition("://")[0]:
                raise
            raise Unreadable(error.problem) from None

    def _refusal(self, uri: str) -> str:
        """Returns why a file must not be read, "" if it may."""
        if files.is_remote(uri) and not files.is_remote(self.uri):
            return "a URL in a local manifest; download the file, or give a remote --source"
        if not self.allow_outside and not files.is_inside(uri, self.folder):
            return "outside the folder of the manifest; --allow_outside reads such files"
        return ""


def _find_manifest(folder: str) -> str:
    """URI of the manifest in a folder; "" if none exists."""
    names = [name + suffix for name in _NAMES for suffix in _SUFFIXES]
    return next((uri for name in names if files.exists(uri := files.join(folder, name))), "")


def _csv(uri: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a CSV or TSV file. Raises ValueError if a row does not match the header."""
    dialect = detect_dialect(uri)
    with files.open_file(uri) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        for _ in range(dialect.skipped):
            next(text)
        reader = csv.reader(read_lines(text), delimiter=dialect.delimiter, strict=True)
        names = _names(next(filter(None, reader), []))
        for values in filter(None, reader):
            line = f"line {reader.line_num + dialect.skipped}"
            if len(values) != len(names):
                fields = f"{len(values)} fields separated by {dialect.delimiter!r}"
                raise ValueError(f"{line} has {fields}, not {len(names)}")
            # Empty fields are missing values.
            row = {name: dialect.normalize(name, value) or None for name, value in zip(names, values, strict=True)}
            if row.pop(_UNNAMED, None):
                raise ValueError(f"{line} has a value in the last column, which has no name in the header")
            yield row


def _names(header: list[str]) -> list[str]:
    """Validates the header line and returns the column names."""
    if not header:
        raise ValueError("the header line is missing")
    names = [name.strip() for name in header]
    # pandas writes an unnamed index column first; a trailing delimiter makes an unnamed last column.
    if not names[0] and len(names) > 1:
        names[0] = "index"
    if not names[-1]:
        names[-1] = _UNNAMED
    if "" in names:
        raise ValueError(f"column {names.index('') + 1} has no name")
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two columns have the name {duplicate!r}")
    return names


def _json_lines(uri: str) -> Iterator[dict[str, Any]]:
    with files.open_file(uri) as raw:
        for line_number, line in enumerate(read_lines(io.TextIOWrapper(raw, "utf-8-sig")), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {line_number}: {error}") from None
            if not isinstance(values, dict):
                raise ValueError(f"line {line_number} is not a JSON object")
            yield values


def _parquet(uri: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with files.open_file(uri) as raw:
            file = pyarrow.parquet.ParquetFile(raw)
            num_rows, size = file.metadata.num_rows, raw.seek(0, io.SEEK_END)
            if num_rows > max(_FREE_ROWS, _ROWS_PER_BYTE * size):
                raise ValueError(f"{num_rows:,} rows in {size:,} bytes")
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                for values in batch.to_pylist():
                    yield {name: _json_value(value) for name, value in values.items()}
    except (GeneratorExit, UserError, ValueError):
        raise
    # pyarrow raises errors of many types on damaged files.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _batch_rows(metadata: Any) -> int:
    """Returns the number of rows to hold at a time, from the unpacked size that the file declares."""
    unpacked = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, min(1024, int(_BATCH_BYTES * metadata.num_rows / max(1, unpacked))))


def _json_value(value: Any) -> Any:
    """Converts times to ISO text and decimals to text. Other values without a JSON form become {"unlisted": type}."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    try:
        json.dumps(value)
    except TypeError:
        return {"unlisted": type(value).__name__}
    return value
