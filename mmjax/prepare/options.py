"""Options of `mmjax prepare`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from mmjax.config import AtLeast, NonNegative, Within, build, parse_literal
from mmjax.errors import UserError, nearest
from mmjax.prepare.kinds import KINDS, Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Options of a preparation. Set any key with `--set KEY=VALUE`; the common ones are flags as well.

    Attributes:
      source: folder, manifest or tar file, as a path or a URI; or tfds:NAME.
      format: key of `mmjax.prepare.sources.SOURCES`; "" infers it.
      allow_outside: lets a manifest refer to files outside its folder.
      columns: {name: "COLUMN" or "COLUMN:KIND"}, inputs and targets; {} infers them. "COLUMN+COLUMN:table" joins
        several columns into one input, "*:table" joins all columns that no other entry names. "COLUMN:labels;" splits
        the cells of a multi-label target at semicolons.
      target: target columns; the other columns of numbers and classes become one table. () infers the targets.
      key: column of unique example keys; "" uses the column "key" or "id", else the keys of the source.
      split: column with the split of each example; "" uses the column "split", else `splits`.
      splits: {split: share of the examples}; ignored if there is a split column.
      group: column such as speaker, patient or video; rows with the same value stay in one split.
      stratify: label by which splits and folds are stratified; "" uses the first label.
      folds: number of cross-validation folds, grouped and stratified; 0 for none.
      seed: random seed.
      shard_megabytes: target size of a shard, in MiB.
      train_tokenizer: vocabulary size of the tokenizers, one per text input, trained on the training split; 0 trains
        none. The size includes the 256 byte tokens.
      checks: {kind: thresholds of its checks}, see `mmjax.prepare.kinds`.
      reduce: {kind: options of its data reduction}, see `mmjax.prepare.kinds`. The data is reduced once, here, instead
        of in every epoch of training.
      keep: findings to report without dropping their rows.
      drop: further findings whose rows are dropped; by default these findings are only reported.
    """

    source: str
    format: str = ""
    allow_outside: bool = False
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    target: tuple[str, ...] = ()
    key: str = ""
    split: str = ""
    splits: dict[str, Annotated[float, AtLeast(0)]] = dataclasses.field(
        default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1}
    )
    group: str = ""
    stratify: str = ""
    folds: Annotated[int, Within(0, 1000)] = 0
    seed: NonNegative = 0
    shard_megabytes: Annotated[float, AtLeast(0.001)] = 64.0
    train_tokenizer: Annotated[int, Within(0, 2**24)] = 0
    checks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    reduce: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (*self.splits, *self.columns):
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ValueError(f"{name!r} is not a valid name; use letters, digits and _")
        if not sum(self.splits.values()):
            raise ValueError("all splits have the share 0; give for example train=0.8,test=0.2")
        if 0 < self.train_tokenizer <= 256:
            raise ValueError(
                f"train_tokenizer {self.train_tokenizer} must exceed the 256 byte tokens; give for example 4000, or 0"
            )
        for name, sections in (("checks", self.checks), ("reduce", self.reduce)):
            for kind in sections:
                if kind not in KINDS:
                    raise ValueError(f"{name}.{kind}: unknown kind {kind!r}; {nearest(kind, KINDS)}")
                self.kind(kind)

    def kind(self, name: str) -> Kind:
        """Builds a kind with the user's thresholds and reductions."""
        cls = KINDS[name]
        return cls(
            build(cls.Config, self.checks.get(name, {}), f"checks.{name}"),
            build(cls.Reduce, self.reduce.get(name, {}), f"reduce.{name}"),
        )


def parse_assignments(assignments: Iterable[str], where: str) -> dict[str, Any]:
    """Parses assignments to a nested dict: "checks.image.blank=3" gives {"checks": {"image": {"blank": 3}}}.

    Args:
      assignments: "KEY=VALUE" texts. A value is a Python literal or else a string.
      where: flag named in error messages.

    Raises:
      UserError: if an assignment has no "=", or sets both a key and its sub-keys.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"{where} {assignment}", "is not KEY=VALUE", f"for example {where} folds=5")
        try:
            value = parse_literal(text)
        except ValueError:
            value = text
        section = result
        *outer, last = name.split(".")
        for key in outer:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"{where} {assignment}", f"{key!r} is set already", "set a key or its sub-keys")
        section[last] = value
    return result


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested dicts. Values of `override` win."""
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result
