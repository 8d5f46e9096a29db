"""Column layout of a source: inputs and targets with their kinds, from options or inferred from values."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.errors import UserError, nearest
from mmjax.modalities.table import is_missing
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.sources import Row
from mmjax.prepare.sources.folder import kind_of_suffix

_KEYS = ("key", "id", "index", "idx", "uid", "uuid")
_SPLIT = "split"
# A column with more distinct values is not a label.
_MOST_CLASSES = 1000
# Minimum share of values with a kind's file suffix. The other paths may be wrong and are reported as unreadable.
_PATH_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Column:
    """An input or a target.

    Attributes:
      name: name in records and configs.
      kind: key of `KINDS`.
      sources: source columns; several only for tables.
    """

    name: str
    kind: str
    sources: tuple[str, ...]

    @property
    def target(self) -> bool:
        """True for a target, False for an input."""
        return KINDS[self.kind].target


@dataclasses.dataclass(frozen=True)
class Layout:
    """Roles of the columns of a source.

    Attributes:
      columns: inputs and targets.
      key, split, group: columns with the key, split and group of each row; "" if the source has none.
    """

    columns: tuple[Column, ...]
    key: str
    split: str
    group: str


def infer_layout(sample: Sequence[Row], known: Mapping[str, str], config: PrepareConfig) -> Layout:
    """Determines the column layout. Options that are not set are inferred.

    Args:
      sample: first rows of the source.
      known: {column: kind} declared by the source.
      config: options.

    Raises:
      UserError: if an option names an unknown column, or no column is an input.
    """
    if not sample:
        raise UserError("--source", f"{config.source!r} has no rows", "give a source with examples")
    present = list(dict.fromkeys(name for row in sample for name in row.values))
    for where in ("key", "split", "group"):
        if (name := getattr(config, where)) and name not in present:
            raise UserError(f"--{where}", f"the source has no column {name!r}", nearest(name, present))
    key = config.key or next((name for name in _KEYS[:2] if _unique(sample, name)), "")
    split = config.split or (_SPLIT if _SPLIT in present else "")
    if config.columns:
        columns = [_parse(name, text, present, sample, known) for name, text in config.columns.items()]
    else:
        others = [name for name in present if name.lower() not in _KEYS and name not in (key, split, config.group)]
        kinds = {name: known.get(name) or guess_kind(row.values.get(name) for row in sample) for name in others}
        columns = [Column(_identifier(name), kind, (name,)) for name, kind in kinds.items() if kind]
        if len({column.name for column in columns}) < len(columns):
            raise UserError("--source", f"names of the columns {present} collide", "choose and rename with --columns")
    if all(column.target for column in columns):
        remedy = "name one with --columns=NAME=COLUMN:KIND"
        raise UserError("--columns", f"none of {', '.join(map(repr, present))} is an input", remedy)
    return Layout(tuple(columns), key, split, config.group)


def guess_kind(values: Iterable[Any]) -> str | None:
    """Infers the kind of a column from its values. Returns None if all are missing or no kind accepts them."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if isinstance(present[0], dict):
        return kind_of_suffix(present[0].get("name", ""))
    if not all(isinstance(value, (str, int, float)) for value in present):
        return None
    # Ignore spellings of a missing value such as "none", although a class may have that name.
    texts = [str(value).strip() for value in present if not is_missing(value)]
    if not texts:
        return None
    suffixes = collections.Counter(kind_of_suffix(text) if len(text.split()) == 1 else None for text in texts)
    kind, count = suffixes.most_common(1)[0]
    if kind and count >= _PATH_SHARE * len(texts):
        return kind
    distinct = len(set(texts))
    few = distinct <= min(_MOST_CLASSES, max(2, len(texts) // 2))
    if all(_is_number(text) for text in texts):
        return "label" if few and all(re.fullmatch(r"[-+]?\d+(\.0*)?", text) for text in texts) else "number"
    # Sentences from templates repeat as labels do; their length tells them apart.
    mean_words = sum(len(text.split()) for text in texts) / len(texts)
    return "label" if few and mean_words < 3 else "text"


def _parse(name: str, text: str, present: Sequence[str], sample: Sequence[Row], known: Mapping[str, str]) -> Column:
    """Parses an item of `--columns`, NAME=COLUMN or NAME=COLUMN:KIND. Raises UserError."""
    source, _, kind = text.rpartition(":") if ":" in text else (text, "", "")
    sources = tuple(source.split("+")) if source not in present else (source,)
    for part in sources:
        if part not in present:
            raise UserError(f"--columns={name}={text}", f"the source has no column {part!r}", nearest(part, present))
    if kind and kind not in KINDS:
        raise UserError(f"--columns={name}={text}", f"unknown kind {kind!r}", nearest(kind, KINDS))
    inferred = kind or known.get(source) or guess_kind(row.values.get(source) for row in sample)
    if not inferred:
        remedy = f"name it, --columns={name}={source}:KIND, with KIND one of {', '.join(KINDS)}"
        raise UserError(f"--columns={name}={text}", f"the kind of {source!r} cannot be inferred", remedy)
    if len(sources) > 1 and not KINDS[inferred].multi_column:
        raise UserError(f"--columns={name}={text}", f"kind {inferred!r} takes one column", "use kind table for several")
    return Column(name, inferred, sources)


def _identifier(column: str) -> str:
    """Converts a column name to a name valid in configs and flags."""
    name = re.sub(r"\W+", "_", column).strip("_")
    return name if name[:1].isalpha() else f"column_{name}".rstrip("_")


def _unique(sample: Sequence[Row], name: str) -> bool:
    """Returns True if no value of a column is missing or repeated."""
    values = [row.values.get(name) for row in sample]
    return None not in values and len(set(map(str, values))) == len(values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
