"""Files that appear whole or not at all, and the folder for what can be made again."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any


def cache_folder(configured: str = "") -> pathlib.Path:
    """Where prepared data and compiled programs live: what the config says, else $MMJAX_CACHE, else ~/.cache/mmjax."""
    return pathlib.Path(configured or os.environ.get("MMJAX_CACHE", "") or "~/.cache/mmjax").expanduser().absolute()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file beside its place and moves it there, so that no reader and no crash sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
