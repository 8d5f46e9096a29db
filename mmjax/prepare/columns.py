"""Which columns of a source are inputs and targets, and of which kind: as the user says, or as the values look."""

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
_MOST_CLASSES = 1000
_PATHS = 0.9


@dataclasses.dataclass(frozen=True)
class Column:
    """An input or a target.

    Attributes:
      name: in records and configs.
      kind: a key of `KINDS`.
      sources: the columns of the source that it is made of, one but for tables.
    """

    name: str
    kind: str
    sources: tuple[str, ...]

    @property
    def target(self) -> bool:
        return KINDS[self.kind].target


@dataclasses.dataclass(frozen=True)
class Layout:
    """What every column of a source is for; "" where there is no such column."""

    columns: tuple[Column, ...]
    key: str
    split: str
    group: str


def arrange(sample: Sequence[Row], known: Mapping[str, str], config: PrepareConfig) -> Layout:
    """Decides what the columns are.

    Args:
      sample: the first rows of the source.
      known: {column: kind} as the source knows them.
      config: of the preparation; what it does not say is found out.

    Raises:
      UserError: if a column is named that there is not, or nothing is left to learn from.
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
        chosen = [_chosen(name, text, present, sample, known) for name, text in config.columns.items()]
    else:
        others = [name for name in present if name.lower() not in _KEYS and name not in (key, split, config.group)]
        kinds = {name: known.get(name) or guess(row.values.get(name) for row in sample) for name in others}
        chosen = [Column(_name(name), kind, (name,)) for name, kind in kinds.items() if kind]
        if len({column.name for column in chosen}) < len(chosen):
            raise UserError("--source", f"columns of {present} are named alike", "choose and name them with --columns")
    if not any(not column.target for column in chosen):
        remedy = "name one with --columns=NAME=COLUMN:KIND"
        raise UserError("--columns", f"none of {', '.join(map(repr, present))} is an input", remedy)
    return Layout(tuple(chosen), key, split, config.group)


def guess(values: Iterable[Any]) -> str | None:
    """The kind of a column from its values; None where they are all missing, or nothing that a kind can hold."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    if isinstance(found[0], dict):
        return kind_of_suffix(found[0].get("name", ""))
    if not all(isinstance(value, (str, int, float)) for value in found):
        return None
    # Among paths and numbers "none" says that there is none; a class may well have such a name.
    texts = [str(value).strip() for value in found if not is_missing(value)]
    if not texts:
        return None
    suffixes = collections.Counter(kind_of_suffix(text) if len(text.split()) == 1 else None for text in texts)
    kind, count = suffixes.most_common(1)[0]
    # A few paths may be wrong, and are then reported as what cannot be read.
    if kind and count >= _PATHS * len(texts):
        return kind
    distinct = len(set(texts))
    few = distinct <= min(_MOST_CLASSES, max(2, len(texts) // 2))
    if all(_number(text) for text in texts):
        return "label" if few and all(re.fullmatch(r"[-+]?\d+(\.0*)?", text) for text in texts) else "number"
    # A sentence may well come again and again, as where a template made it: it stays one by its length.
    words = sum(len(text.split()) for text in texts) / len(texts)
    return "label" if few and words < 3 else "text"


def _chosen(name: str, text: str, present: Sequence[str], sample: Sequence[Row], known: Mapping[str, str]) -> Column:
    source, _, kind = text.rpartition(":") if ":" in text else (text, "", "")
    sources = tuple(source.split("+")) if source not in present else (source,)
    for part in sources:
        if part not in present:
            raise UserError(f"--columns={name}={text}", f"the source has no column {part!r}", nearest(part, present))
    if kind and kind not in KINDS:
        raise UserError(f"--columns={name}={text}", f"unknown kind {kind!r}", nearest(kind, KINDS))
    found = kind or known.get(source) or guess(row.values.get(source) for row in sample)
    if not found:
        remedy = f"say what it is: --columns={name}={source}:KIND, KIND being one of {', '.join(KINDS)}"
        raise UserError(f"--columns={name}={text}", f"the values of {source!r} do not tell their kind", remedy)
    if len(sources) > 1 and not KINDS[found].multi_column:
        raise UserError(f"--columns={name}={text}", f"a {found} is made of one column", "give several to a table")
    return Column(name, found, sources)


def _name(column: str) -> str:
    """A name that configs and flags can hold."""
    name = re.sub(r"\W+", "_", column).strip("_")
    return name if name[:1].isalpha() else f"column_{name}".rstrip("_")


def _unique(sample: Sequence[Row], name: str) -> bool:
    values = [row.values.get(name) for row in sample]
    return None not in values and len(set(map(str, values))) == len(values)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
