"""Manifests: CSV, TSV, JSONL or Parquet tables with one row per example. Cells are paths, texts, numbers or labels."""

from __future__ import annotations

import codecs
import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from mmjax.errors import UserError
from mmjax.modalities.table import is_missing
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row, Source, load_file, load_folder
from mmjax.prepare.sources.csv_dialect import detect_dialect

_NAMES = ("manifest", "metadata", "data")
# Column name of the empty field after a trailing delimiter.
_UNNAMED = "\0"
# Python's default limit is 131,072 characters per field; texts may be longer.
csv.field_size_limit(2**31 - 1)
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
        except (ValueError, csv.Error, OSError) as error:
            problem = f"{self.uri!r} cannot be read: {error}"
            raise UserError("--source", problem, "give a CSV, TSV, JSONL or Parquet file in UTF-8") from None

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, str) or not kind.is_path(name := value.strip()):
            return value
        if is_missing(name):
            return None
        # Accept Windows path separators.
        uri = files.join(self.folder, name if "/" in name else name.replace("\\", "/"))
        if kind.inline and not kind.paths and not files.exists(uri):
            return value
        if kind.takes_folders and files.is_folder(uri):
            return load_folder(uri)
        return load_file({"file": uri, "name": name})


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
        reader = csv.reader(text, delimiter=dialect.delimiter, strict=True)
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
        for line_number, line in enumerate(codecs.getreader("utf-8-sig")(raw), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {line_number}: {error}") from None
            if not isinstance(values, dict):
                raise ValueError(f"line {line_number} is not a JSON object")
            yield values


def _parquet(uri: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with files.open_file(uri) as raw:
            for batch in pyarrow.parquet.ParquetFile(raw).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    json.dumps(values)  # raises TypeError for values that are not JSON-serialisable
                    yield values
    except (pyarrow.ArrowException, TypeError) as error:
        raise ValueError(str(error)) from None
