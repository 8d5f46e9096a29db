"""Raw data sources. A new source is one file and one line in `SOURCES`; see `Source` in `base.py`."""

from __future__ import annotations

from mmjax.errors import UserError, nearest
from mmjax.prepare.sources.array_record import ArrayRecords
from mmjax.prepare.sources.base import Row, Source
from mmjax.prepare.sources.folder import Folder
from mmjax.prepare.sources.manifest import Manifest
from mmjax.prepare.sources.tfds import Tfds
from mmjax.prepare.sources.webdataset import WebDataset

# In order of preference: `open_source` takes the first that accepts the URI.
SOURCES: dict[str, type[Source]] = {
    "tfds": Tfds,
    "array_record": ArrayRecords,
    "manifest": Manifest,
    "webdataset": WebDataset,
    "folder": Folder,
}


def open_source(uri: str, kind: str = "", allow_outside: bool = False) -> Source:
    """Opens `uri` as the source `kind`, or as the first in `SOURCES` that accepts it if `kind` is "".

    A manifest may refer to files outside its folder only if `allow_outside`.

    Raises:
      UserError: if `kind` is unknown, or no source accepts `uri`.
    """
    if kind and kind not in SOURCES:
        raise UserError("--format", f"unknown format {kind!r}", nearest(kind, SOURCES))
    for name, cls in SOURCES.items():
        if name == kind or not kind and cls.accepts(uri):
            source = cls(uri)
            source.allow_outside = allow_outside
            return source
    remedy = "give a folder, a manifest (CSV, TSV, JSONL, Parquet), a tar file, or tfds:NAME"
    raise UserError("--source", f"{uri!r} does not exist or has an unknown format", remedy)
