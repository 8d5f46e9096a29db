"""Atomic file writes, JSON without NaN, and the cache folder."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from mmjax.errors import UserError


def user_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path with a leading `~` or `~user` expanded; shells leave the `~` of `--flag=~/x` to the program.

    Raises:
      UserError: if the user's home folder is unknown.
    """
    path = pathlib.Path(os.path.expanduser(text))
    home = path.parts[0] if path.parts else ""
    if home.startswith("~") and not os.path.exists(home):
        raise UserError(str(text), f"the home folder {home!r} is unknown", "give the full path")
    return path


def cache_folder(configured: str = "") -> pathlib.Path:
    """Returns the folder of prepared data and compiled programs: `configured`, $MMJAX_CACHE or ~/.cache/mmjax."""
    return pathlib.Path(configured or os.environ.get("MMJAX_CACHE", "") or "~/.cache/mmjax").expanduser().absolute()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file through a temporary file and a rename, so that a partial file is never visible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON with sorted keys, atomically; NaN and infinity become null."""
    write_atomically(path, to_json(value, indent=2, sort_keys=True) + "\n")


def to_json(value: Any, **options: Any) -> str:
    """Serialises to JSON; NaN and infinity, which JSON lacks, become null. `options` are those of `json.dumps`."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
