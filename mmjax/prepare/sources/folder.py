"""Folders without a manifest: files with the same stem form an example, labelled by their parent folder."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.errors import UserError
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


class Folder(Source):
    """Folder tree of examples: `cats/1.jpg` and `cats/1.txt` are image and text of one example with the label "cats".

    If all outermost folders are named train, validation (or val, dev) or test, they define the splits. Files with
    unknown suffixes are ignored.
    """

    def __init__(self, uri: str):
        self.uri = uri

    @staticmethod
    def accepts(uri: str) -> bool:
        return files.is_folder(uri)

    @property
    def kinds(self) -> Mapping[str, str]:
        return {"label": "label"}

    def rows(self, work: pathlib.Path) -> Iterator[Row]:
        examples: dict[str, dict[str, Any]] = {}
        for name, _ in files.walk(self.uri):
            if kind := kind_of_suffix(name):
                stem = name[: -len(pathlib.PurePosixPath(name).suffix)]
                # `1.jpg` and `1.png` are two examples: both are images.
                while kind in examples.get(stem, {}):
                    stem = f"{name}" if stem != name else f"{stem}~"
                examples.setdefault(stem, {})[kind] = {"file": files.join(self.uri, name), "name": name}
        if not examples:
            suffixes = ", ".join(suffix for cls in KINDS.values() for suffix in cls.suffixes)
            problem = f"{self.uri!r} has no files with a known suffix"
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
                values["label"] = "/".join(parts[stem][has_splits:]) or None
            yield Row(stem, values)

    def load(self, value: Any, kind: Kind) -> Any:
        return load_file(value)
