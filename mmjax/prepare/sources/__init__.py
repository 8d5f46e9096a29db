"""Sources of raw data. A new one is one file and one line here; see `Source` in `base.py`."""

from __future__ import annotations

from mmjax.errors import UserError, nearest
from mmjax.prepare.sources.array_record import ArrayRecords
from mmjax.prepare.sources.base import Row, Source
from mmjax.prepare.sources.folder import Folder
from mmjax.prepare.sources.manifest import Manifest
from mmjax.prepare.sources.tfds import Tfds
from mmjax.prepare.sources.webdataset import WebDataset

# The first that accepts a place is taken.
SOURCES: dict[str, type[Source]] = {
    "tfds": Tfds,
    "array_record": ArrayRecords,
    "manifest": Manifest,
    "webdataset": WebDataset,
    "folder": Folder,
}


def open_source(uri: str, kind: str = "") -> Source:
    """The source at a place, of the kind that is named, or of the first that accepts the place.

    Raises:
      UserError: if nothing lies there, or nobody can read it.
    """
    if kind and kind not in SOURCES:
        raise UserError("--format", f"unknown format {kind!r}", nearest(kind, SOURCES))
    for name, cls in SOURCES.items():
        if name == kind or not kind and cls.accepts(uri):
            return cls(uri)
    remedy = "give a folder, a manifest (CSV, TSV, JSONL, Parquet), a tar file, or tfds:NAME"
    raise UserError("--source", f"{uri!r} is nothing that can be read", remedy)


__all__ = ["SOURCES", "Row", "Source", "open_source"]
