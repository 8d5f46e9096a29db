"""A table with a row for each example: CSV, TSV, JSONL or Parquet, whose columns are paths, texts, numbers, labels."""

from __future__ import annotations

import codecs
import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.errors import UserError
from mmjax.modalities.table import is_missing
from mmjax.prepare import files
from mmjax.prepare.kinds import Kind
from mmjax.prepare.sources.base import Row, load_file, load_folder
from mmjax.prepare.sources.separated import find_form

_NAMES = ("manifest", "metadata")
_UNNAMED = "\0"
# A text may be as long as it wants; Python's own limit is 131,072 characters.
csv.field_size_limit(2**31 - 1)
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class Manifest:
    """A manifest, or a folder with one named manifest.* or metadata.*. Its paths are relative to its own folder."""

    def __init__(self, uri: str):
        self.uri = uri if uri.lower().endswith(_SUFFIXES) else _inside(uri)
        self.folder = files.parent(self.uri)

    @staticmethod
    def accepts(uri: str) -> bool:
        return uri.lower().endswith(_SUFFIXES) or files.is_folder(uri) and bool(_inside(uri))

    @property
    def kinds(self) -> Mapping[str, str]:
        return {}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        if not files.exists(self.uri):
            raise UserError("--source", f"there is no file {self.uri!r}", "give the path of a manifest or a folder")
        suffix = pathlib.PurePath(self.uri.lower()).suffix
        read = _parquet if suffix == ".parquet" else _json_lines if suffix in (".jsonl", ".ndjson") else _separated
        try:
            for number, values in enumerate(read(self.uri)):
                yield Row(f"{number:08}", values)
        except (ValueError, csv.Error, OSError) as error:
            problem = f"{self.uri!r} cannot be read: {error}"
            raise UserError("--source", problem, "give a CSV, TSV, JSONL or Parquet file in UTF-8") from None

    def load(self, value: Any, kind: Kind) -> Any:
        if not isinstance(value, str) or not kind.is_path(name := value.strip()):
            return value
        if is_missing(name):
            return None
        # As Windows writes paths.
        uri = files.join(self.folder, name if "/" in name else name.replace("\\", "/"))
        if kind.takes_folders and files.is_folder(uri):
            return load_folder(uri)
        return load_file({"file": uri, "name": name})


def _inside(folder: str) -> str:
    names = [name + suffix for name in _NAMES for suffix in _SUFFIXES]
    return next((uri for name in names if files.exists(uri := files.join(folder, name))), "")


def _separated(uri: str) -> Iterator[dict[str, Any]]:
    form = find_form(uri)
    with files.open_file(uri) as raw:
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        for _ in range(form.skipped):
            next(text)
        reader = csv.reader(text, delimiter=form.delimiter, strict=True)
        names = _names(next(filter(None, reader), []))
        for values in filter(None, reader):
            if len(values) != len(names):
                line = reader.line_num + form.skipped
                raise ValueError(f"line {line} has not {len(names)} values between {form.delimiter!r}")
            # What is between two commas is missing.
            row = {name: form.read(name, value) or None for name, value in zip(names, values, strict=True)}
            if row.pop(_UNNAMED, None):
                line = reader.line_num + form.skipped
                raise ValueError(f"line {line} has a value in the last column, which has no name")
            yield row


def _names(header: list[str]) -> list[str]:
    """The names of the columns, of their line."""
    if not header:
        raise ValueError("it has no line with the names of the columns")
    names = [name.strip() for name in header]
    # Of the rows' numbers, which pandas writes first, and of what follows a comma at the end of each line.
    if not names[0] and len(names) > 1:
        names[0] = "index"
    if not names[-1]:
        names[-1] = _UNNAMED
    if "" in names:
        raise ValueError(f"column {names.index('') + 1} has no name")
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two columns have the name {repeated!r}")
    return names


def _json_lines(uri: str) -> Iterator[dict[str, Any]]:
    with files.open_file(uri) as raw:
        for number, line in enumerate(codecs.getreader("utf-8-sig")(raw), 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(values, dict):
                raise ValueError(f"line {number} is no object")
            yield values


def _parquet(uri: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with files.open_file(uri) as raw:
            for batch in pyarrow.parquet.ParquetFile(raw).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    json.dumps(values)
                    yield values
    except (pyarrow.ArrowException, TypeError) as error:
        raise ValueError(str(error)) from None
