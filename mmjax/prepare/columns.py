"""Column layout of a source: inputs and targets with their kinds, from options or inferred from values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from mmjax.errors import UserError, nearest
from mmjax.prepare.kinds import KINDS
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.profile import Profile

KEYS = ("key", "id")
"""Names of columns that serve as row keys if their values are unique."""

_KEYS = (*KEYS, "index", "idx", "uid", "uuid")
# Names that pandas gives to an index without a name, in Parquet and after a CSV was written and read again.
_PANDAS_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")
_SPLIT = "split"
# Wildcard in `--columns`: all columns that no other item names.
_ALL = "*"
# Kinds whose values can be cells of a table.
_CELL_KINDS = ("number", "label")


@dataclasses.dataclass(frozen=True)
class Column:
    """An input or a target.

    Attributes:
      name: name in records and configs.
      kind: key of `KINDS`.
      sources: source columns; several only for tables.
      separator: character between the names in a cell, for kind "labels"; "" for lists.
      paths: True if the values are file paths; a few may be invalid.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    separator: str = ""
    paths: bool = False

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
      left_out: {column or other content of the source: why it is not used}.
    """

    columns: tuple[Column, ...]
    key: str
    split: str
    group: str
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


def infer_layout(
    profiles: Mapping[str, Profile],
    unique: Collection[str],
    known: Mapping[str, str],
    config: PrepareConfig,
    ignored: Mapping[str, str] | None = None,
) -> Layout:
    """Determines the column layout. Options that are not set are inferred.

    Args:
      profiles: {column: profile of all of its values}.
      unique: columns that have a different value in each row.
      known: {column: kind} declared by the source.
      config: options.
      ignored: {content of the source that is not a column: reason}.

    Raises:
      UserError: if an option names an unknown column, or no column is an input.
    """
    if not profiles:
        raise UserError("--source", f"{config.source!r} has no rows", "give a source with examples")
    present = list(profiles)
    for where in ("key", "split", "group"):
        if (name := getattr(config, where)) and name not in present:
            raise UserError(f"--{where}", f"the source has no column {name!r}", nearest(name, present))
    for name in config.target:
        if name not in present:
            raise UserError(f"--target={name}", f"the source has no column {name!r}", nearest(name, present))
    key = config.key or next((name for name in KEYS if name in unique and name not in config.target), "")
    split = config.split or (_SPLIT if _SPLIT in present else "")
    roles = {key, split, config.group}
    left_out = {
        name: "named like a row number or a key"
        for name in present
        if name.lower() in _KEYS or _PANDAS_INDEX.fullmatch(name) and profiles[name].kind() == "number"
    }
    left_out = {name: why for name, why in left_out.items() if name not in {*roles, *config.target}}
    others = [name for name in present if name not in roles and name not in left_out]
    kinds = {name: known.get(name) or profiles[name].kind() for name in others}
    if config.columns:
        items = config.columns | {_identifier(name): name for name in config.target}
        used = {part for text in items.values() for part in _sources(text, present)[0]}
        rest = [name for name in others if name not in used and kinds[name] in _CELL_KINDS]
        columns = [_parse(name, text, present, profiles, known, rest) for name, text in items.items()]
    else:
        columns = _roles({name: kind for name, kind in kinds.items() if kind}, profiles, config)
        if len({column.name for column in columns}) < len(columns):
            raise UserError("--source", f"names of the columns {present} collide", "choose and rename with --columns")
    if all(column.target for column in columns):
        remedy = "name one with --columns=NAME=COLUMN:KIND"
        raise UserError("--columns", f"none of {', '.join(map(repr, present))} is an input", remedy)
    used = {source for column in columns for source in column.sources}
    for name in others:
        if name not in used:
            why = profiles[name].reason if not kinds[name] else f"{kinds[name]}, not a cell of a table"
            left_out[name] = "not in --columns" if config.columns else why
    left_out = {name: why for name, why in left_out.items() if name not in used}
    return Layout(tuple(columns), key, split, config.group, left_out | dict(ignored or {}))


def _roles(kinds: Mapping[str, str], profiles: Mapping[str, Profile], config: PrepareConfig) -> list[Column]:
    """Assigns columns to inputs and targets by their kinds. Numbers and labels that are not targets form one table.

    Raises:
      UserError: if `--target` is needed, or names a column that cannot be a target.
    """
    targets = config.target or [name for name, kind in kinds.items() if KINDS[kind].target]
    for name in config.target:
        if name not in kinds or not KINDS[kinds[name]].target:
            problem = f"{name!r} is {kinds[name]!r}" if name in kinds else f"{name!r} {profiles[name].reason}"
            remedy = f"give a column of classes or numbers, or --columns={_identifier(name)}={name}:label"
            raise UserError(f"--target={name}", problem, remedy)
    if not config.target and len(targets) == len(kinds) > 1:
        labels = [name for name in targets if kinds[name] == "label"]
        if len(labels) != 1:
            problem = f"no column is an input: {', '.join(targets)} are all classes or numbers"
            raise UserError("--target", problem, "name the target, --target=COLUMN; the others become one table")
        targets = labels
    cells = tuple(name for name, kind in kinds.items() if name not in targets and kind in _CELL_KINDS)
    names = [name for name, kind in kinds.items() if name in targets or not KINDS[kind].target]
    columns = [Column(_identifier(name), kinds[name], (name,), paths=profiles[name].paths) for name in names]
    if cells:
        taken = {column.name for column in columns}
        columns.insert(
            0, Column(next(name for name in ("table", "cells", "table_") if name not in taken), "table", cells)
        )
    return columns


def _sources(text: str, present: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Splits COLUMN+COLUMN:KIND into source columns and kind; column names may contain "+" and ":"."""
    source, _, kind = text.rpartition(":") if ":" in text and text not in present else (text, "", "")
    return (source,) if source in present or source == _ALL else tuple(source.split("+")), kind


def _parse(
    name: str,
    text: str,
    present: Sequence[str],
    profiles: Mapping[str, Profile],
    known: Mapping[str, str],
    rest: Sequence[str],
) -> Column:
    """Parses an item of `--columns`: NAME=COLUMN, NAME=COLUMN:KIND or NAME=*:table. Raises UserError."""
    where = f"--columns={name}={text}"
    sources, kind = _sources(text, present)
    separator = ""
    if separated := re.fullmatch(r"labels(\W)", kind):
        kind, separator = "labels", separated[1]
    if sources == (_ALL,):
        if kind != "table":
            raise UserError(where, f"* cannot be {kind or 'of an inferred kind'!r}", f"write {name}=*:table")
        if not rest:
            raise UserError(where, "no other column holds numbers or classes", "name the columns: A+B:table")
        sources = tuple(rest)
    for part in sources:
        if part not in present:
            raise UserError(where, f"the source has no column {part!r}", nearest(part, present))
    if kind and kind not in KINDS:
        raise UserError(where, f"unknown kind {kind!r}", nearest(kind, KINDS))
    profile = profiles[sources[0]]
    inferred = kind or (known.get(sources[0]) or profile.kind() if len(sources) == 1 else "")
    if not inferred:
        remedy = f"name it, --columns={name}={'+'.join(sources)}:KIND, with KIND one of {', '.join(KINDS)}"
        problem = f"the kind of {'+'.join(sources)!r} cannot be inferred"
        raise UserError(where, problem + (f": {profile.reason}" if profile.reason else ""), remedy)
    if len(sources) > 1 and not KINDS[inferred].multi_column:
        raise UserError(where, f"kind {inferred!r} takes one column", "use kind table for several")
    return Column(name, inferred, sources, separator, profile.paths)


def _identifier(column: str) -> str:
    """Converts a column name to a name valid in configs and flags."""
    name = re.sub(r"\W+", "_", column).strip("_")
    return name if name[:1].isalpha() else f"column_{name}".rstrip("_")
