"""What a user can set about a preparation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from mmjax.config import AtLeast, NonNegative, build
from mmjax.errors import UserError, nearest
from mmjax.prepare.kinds import KINDS, Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What is prepared, and how. Every key can be given as `--set KEY=VALUE`; the common ones have flags of their own.

    Attributes:
      source: a folder, a manifest, a tar file or a bucket's address of any of them, or tfds:NAME.
      format: a name in `mmjax.prepare.sources.SOURCES`; "" to find out.
      columns: {name: "COLUMN" or "COLUMN:KIND"}, the inputs and targets; {} to find out. Two columns and more,
        "COLUMN+COLUMN:table", are one input.
      key: the column that names examples; "" for the column "key" or "id", or else the source's own names.
      split: the column with the split of each example; "" for the column "split", or else `splits`.
      splits: {name of a split: share of the examples}, where no column says it.
      group: the column whose values must not be in two splits: a speaker, a patient, a video.
      stratify: the label that is to be equally frequent in all splits; "" for the first one.
      folds: number of parts for cross-validation, of whole groups and stratified; 0 for none.
      seed: of all random choices.
      shard_megabytes: how large a shard should be.
      train_tokenizer: tokens of a tokenizer that is trained on each text input of the training split, 0 for none; more
        than the 256 that are the bytes.
      checks: {kind of column: the thresholds of its checks}, see `mmjax.prepare.kinds`.
      reduce: {kind of column: how much of its data is kept}, see there too. What is made smaller once need not be made
        smaller in each epoch.
      keep: findings that are reported but not dropped, beside those that never are.
      drop: findings that are dropped though they are suspicions only.
    """

    source: str
    format: str = ""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    key: str = ""
    split: str = ""
    splits: dict[str, Annotated[float, AtLeast(0)]] = dataclasses.field(
        default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1}
    )
    group: str = ""
    stratify: str = ""
    folds: NonNegative = 0
    seed: NonNegative = 0
    shard_megabytes: Annotated[float, AtLeast(0.001)] = 64.0
    train_tokenizer: NonNegative = 0
    checks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    reduce: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (*self.splits, *self.columns):
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise ValueError(f"{name!r} is no name; use letters, digits and _")
        if not sum(self.splits.values()):
            raise ValueError("splits have no share above 0; give for example train=0.8,test=0.2")
        if 0 < self.train_tokenizer <= 256:
            raise ValueError(
                f"train_tokenizer {self.train_tokenizer} has no room beside the 256 bytes; give 4000, or 0"
            )
        for name, sections in (("checks", self.checks), ("reduce", self.reduce)):
            for kind in sections:
                if kind not in KINDS:
                    raise ValueError(f"{name}.{kind} is no kind of column; {nearest(kind, KINDS)}")
                self.kind(kind)

    def kind(self, name: str) -> Kind:
        """A kind with the user's thresholds and reductions."""
        kind = KINDS[name]
        return kind(
            build(kind.Config, self.checks.get(name, {}), f"checks.{name}"),
            build(kind.Reduce, self.reduce.get(name, {}), f"reduce.{name}"),
        )


def nested(assignments: Iterable[str], where: str) -> dict[str, Any]:
    """Makes "checks.image.blank=3" {"checks": {"image": {"blank": 3}}}; values are Python literals or else strings.

    Raises:
      UserError: if an assignment has no "=".
    """
    import ast

    result: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"{where} {assignment}", "is not KEY=VALUE", f"write for example {where} folds=5")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        section = result
        *outer, last = name.split(".")
        for part in outer:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise UserError(f"{where} {assignment}", f"{part!r} has a value already", "set it or its parts")
        section[last] = value
    return result


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both sections as one; where both have a value, that of `other`."""
    result = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result
