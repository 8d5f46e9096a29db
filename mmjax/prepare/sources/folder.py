"""Folders without a manifest: files with the same stem form an example, labelled by their parent folder."""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.errors import UserError
from mmjax.modalities.names import printable
from mmjax.prepare import files
from mmjax.prepare.kinds import KINDS, Kind
from mmjax.prepare.sources.base import Row, Source, load_file

# {lower-case folder name: split}.
SPLIT_ALIASES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLIT_ALIASES |= {"validation": "validation", "test": "test", "testing": "test"}


def kind_of_suffix(name: str) -> str | None:
    """Column kind of a file name's suffix; None if unknown."""
    suffix = pathlib.PurePosixPath(name.lower()).suffix
    return next((kind for kind, cls in KINDS.items() if suffix in cls.suffixes), None)


# Files about a dataset, whatever their number.
_ABOUT = re.compile(
    r"(read.?me|licen[cs]e|copying|copyright|notice|authors?|credits|changes|changelog|origin|about|index)"
    r"([-_. ].*)?",
    re.IGNORECASE,
)
# A kind of file with fewer lone examples than this share of all is stray.
_STRAY_SHARE = 0.1


def _strays(examples: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Examples that are only about the others, or of a kind that is rare and never accompanies another."""
    kinds = collections.Counter(kind for example in examples.values() for kind in example)
    most = max(kinds.values(), default=0)
    alone = {stem: next(iter(example)) for stem, example in examples.items() if len(example) == 1}
    alone = {stem: kind for stem, kind in alone.items() if kinds[kind] < most}
    about = [
        stem for stem, kind in alone.items() if kind in ("text", "series") and _ABOUT.fullmatch(stem.rpartition("/")[2])
    ]
    kinds.subtract(alone[stem] for stem in about)
    accompanying = {kind for example in examples.values() if len(example) > 1 for kind in example}
    rare = {kind for kind, count in kinds.items() if count < _STRAY_SHARE * (len(examples) - len(about))}
    return [*about, *(stem for stem in alone.keys() - about if alone[stem] in rare - accompanying)]


class Folder(Source):
    """Folder tree of examples: `cats/1.jpg` and `cats/1.txt` are image and text of one example with the label "cats".

    Text files such as README, and files of a kind that nowhere accompanies another, are no examples among those of
    other kinds; `left_out` lists them.

    If all outermost folders are named train, validation (or val, dev) or test, they define the splits. Files with
    unknown suffixes are ignored.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self._left_out: dict[str, str] = {}

    @property
    def left_out(self) -> Mapping[str, str]:
        return self._left_out

    @staticmethod
    def accepts(uri: str) -> bool:
        return files.is_folder(uri)

    @property
    def kinds(self) -> Mapping[str, str]:
        return {"label": "label"}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        examples: dict[str, dict[str, Any]] = {}
        unknown: collections.Counter = collections.Counter()
        outside = []
        for name, _ in files.walk(self.uri):
            if not self.allow_outside and not files.is_inside(files.join(self.uri, name), self.uri):
                outside.append(name)
            elif not (kind := kind_of_suffix(name)):
                unknown[pathlib.PurePosixPath(name.lower()).suffix or "no suffix"] += 1
            else:
                stem = name[: -len(pathlib.PurePosixPath(name).suffix)]
                # `1.jpg` and `1.png` are two examples: both are images.
                while kind in examples.get(stem, {}):
                    stem = f"{name}" if stem != name else f"{stem}~"
                examples.setdefault(stem, {})[kind] = {"file": files.join(self.uri, name), "name": name}
        self._left_out = {printable(suffix): f"{count:,} files of an unknown kind" for suffix, count in unknown.items()}
        if outside:
            # A link may lead to any file of this machine.
            why = f"{len(outside):,} links out of the folder; --allow_outside reads them"
            self._left_out[printable(outside[0])] = why
        for stem in _strays(examples):
            for kind, reference in examples.pop(stem).items():
                self._left_out[printable(reference["name"])] = f"a stray {kind} file"
        if not examples:
            suffixes = ", ".join(suffix for cls in KINDS.values() for suffix in cls.suffixes)
            problem = f"{self.uri!r} has no files with a known suffix"
            if outside:
                raise UserError("--source", f"{problem} but links out of it", "read them with --allow_outside")
            raise UserError("--source", problem, f"give a folder with a manifest or with files named {suffixes}")
        parts = {stem: stem.split("/")[:-1] for stem in examples}
        nested = [folders for folders in parts.values() if folders]
        has_splits = bool(nested) and all(folders[0].lower() in SPLIT_ALIASES for folders in nested)
        if has_splits:
            # Ignore files next to the split folders, such as a file list.
            parts = {stem: folders for stem, folders in parts.items() if folders}
        labels = {"/".join(folders[has_splits:]) for folders in parts.values()}
        for stem in sorted(parts):
            values = examples[stem]
            if has_splits:
                values["split"] = SPLIT_ALIASES[parts[stem][0].lower()]
            # With a single folder, its name is not a label.
            if len(labels) > 1:
                values["label"] = printable("/".join(parts[stem][has_splits:])) or None
            yield Row(printable(stem), values)

    def load(self, value: Any, kind: Kind) -> Any:
        return load_file(value)
