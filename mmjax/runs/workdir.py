"""The folder of a run: its names and forms are stable, and other programs may rely on them.

config.json (resolved), metrics.jsonl, result.json, parameters.txt, checkpoints/, preprocessing/, tensorboard/.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mmjax import __version__
from mmjax.errors import UserError
from mmjax.files import write_json
from mmjax.modalities import Modality

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """The places where two nested configs differ: (place, old value, new value), None where there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return found
    return [] if old == new else [(where, old, new)]


def check_same_config(workdir: pathlib.Path, raw: Mapping[str, Any], changeable: tuple[str, ...]) -> None:
    """Raises a UserError if the workdir holds a run of another config than `raw`, save for what may change."""
    if ":/" in str(workdir):
        # Checkpoints and logs appear at once by renaming, which is not to be had in a bucket.
        raise UserError("--workdir", f"{workdir} is an address", "give a folder; a bucket can be mounted as one")
    path = workdir / "config.json"
    above = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise UserError("--workdir", f"{above} is a file", "give a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError("--workdir", f"{above} is not yours to write in", "give another folder")
    if not path.exists():
        if workdir.exists() and not all(_is_beginning(child) for child in workdir.iterdir()):
            raise UserError("--workdir", f"{workdir} is not empty and holds no run", "give an empty or a new folder")
        return
    for where, old, new in differences(_load(path), raw):
        if not any(where == key or where.startswith(key + ".") for key in changeable):
            raise UserError(
                "--workdir",
                f"{workdir} holds a run with {where} = {_brief(old)}, not {_brief(new)}",
                "give another workdir, or the config of that run",
            )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]} …"


def _is_beginning(path: pathlib.Path) -> bool:
    """Whether a run that was killed while it wrote config.json leaves such a file."""
    return path.name == "preprocessing" or path.name.startswith(".config.json.")


def check_same_files(workdir: pathlib.Path, modalities: Mapping[str, Modality]) -> None:
    """Raises a UserError if a file that preprocessing depends on has changed since the run began."""
    for name, modality in modalities.items():
        for file in modality.files():
            copy = workdir / "preprocessing" / name / file.name
            if copy.is_file() and copy.read_bytes() != file.read_bytes():
                remedy = f"restore it from {copy}, or give another workdir"
                raise UserError(f"data.inputs.{name}", f"{file} has changed since the run began", remedy)


def write_config(workdir: pathlib.Path, raw: Mapping[str, Any], modalities: Mapping[str, Modality]) -> None:
    """Writes config.json, after copies of the files that preprocessing depends on."""
    for name, modality in modalities.items():
        for file in modality.files():
            folder = workdir / "preprocessing" / name
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / file.name).exists():
                # A kill must not leave half a copy under the name.
                temporary = folder / f".{file.name}.{os.getpid()}"
                shutil.copyfile(file, temporary)
                os.replace(temporary, folder / file.name)
    write_json(workdir / "config.json", dict(raw))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The config of a run, its preprocessing files taken from the workdir.

    Raises:
      UserError: where there is no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError("--workdir", f"{workdir} holds no run", "give the workdir of `mmjax train`")
    raw = _load(path)
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), dict) for key in ("data", "model", "train")):
        raise UserError("--workdir", f"{path} is not of a run of mmjax", "give the workdir of `mmjax train`")
    for name, section in raw["data"].get("inputs", {}).items():
        for key, value in section.items():
            copy = workdir / "preprocessing" / name / pathlib.Path(str(value)).name
            if isinstance(value, str) and value and copy.is_file():
                section[key] = str(copy)
    return raw


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError("--workdir", f"{path} is not JSON: {error}", "restore it, or give another workdir") from error


def provenance() -> dict[str, Any]:
    """What made a result: versions, machine and commit, as far as they are known."""
    versions: dict[str, str | None] = {"mmjax": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions, "git_commit": _commit(), "machine": platform.machine(), "system": platform.system()}


def _commit() -> str | None:
    """The commit of the code that runs, with a "+" if it was changed."""
    folder = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=folder, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
