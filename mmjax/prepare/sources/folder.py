"""A folder of files without a manifest: files of one name are one example, and the folder they lie in its label."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.errors import UserError
from mmjax.prepare import files
from mmjax.prepare.kinds import KINDS, Kind
from mmjax.prepare.sources.base import Row, load_file

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLITS |= {"validation": "validation", "test": "test", "testing": "test"}


def kind_of_suffix(name: str) -> str | None:
    """The kind whose files have the suffix of `name`; None where nobody reads them."""
    suffix = pathlib.PurePosixPath(name.lower()).suffix
    return next((kind for kind, cls in KINDS.items() if suffix in cls.suffixes), None)


class Folder:
    """`cats/1.jpg` and `cats/1.txt` are the image and the text of one example of the class "cats".

    Where the outermost folders are named train, validation (or val, dev) and test, they are the splits. A file that no
    kind reads is left out.
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
                # `1.jpg` beside `1.png` are two examples.
                while kind in examples.get(stem, {}):
                    stem = f"{name}" if stem != name else f"{stem}~"
                examples.setdefault(stem, {})[kind] = {"file": files.join(self.uri, name), "name": name}
        if not examples:
            suffixes = ", ".join(suffix for cls in KINDS.values() for suffix in cls.suffixes)
            problem = f"{self.uri!r} holds no file that can be read"
            raise UserError("--source", problem, f"give a folder with a manifest, or with files of these: {suffixes}")
        parts = {stem: stem.split("/")[:-1] for stem in examples}
        placed = [folders for folders in parts.values() if folders]
        splits = bool(placed) and all(folders[0].lower() in SPLITS for folders in placed)
        if splits:
            # What lies beside the folders of the splits, such as a list of the files, belongs to none of them.
            parts = {stem: folders for stem, folders in parts.items() if folders}
        labels = {"/".join(folders[splits:]) for folders in parts.values()}
        for stem in sorted(parts):
            values = examples[stem]
            if splits:
                values["split"] = SPLITS[parts[stem][0].lower()]
            # Where all lie in one folder, its name says nothing about an example.
            if len(labels) > 1:
                values["label"] = "/".join(parts[stem][splits:]) or None
            yield Row(stem, values)

    def load(self, value: Any, kind: Kind) -> Any:
        return load_file(value)
