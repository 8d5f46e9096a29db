"""Workdir of a run. Its file names and formats are stable, so other programs may read them.

Files: config.json (resolved), metrics.jsonl, result.json, ledger.json (wall time by part), parameters.txt,
checkpoints/, tensorboard/, and preprocessing/, which has dataset.json (the record of the data) and copies of
preprocessing files. A workdir can be
moved, and opened without its data.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Mapping
from typing import Any

from mmjax.datasets import recorded
from mmjax.errors import UserError
from mmjax.experiment import DataConfig
from mmjax.files import load_json, write_json
from mmjax.host.software import git_commit, package_versions
from mmjax.modalities import Modality
from mmjax.runs import lock

_REMEDY = "restore it, or give another workdir"
# Maximum number of differing keys in a message.
_MAX_NAMED = 3
# Keys of the section `data` that do not belong to the dataset.
_SHARED_KEYS = {field.name for field in dataclasses.fields(DataConfig)} - {"name"}


def differences(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Returns `(dotted key, old value, new value)` for each value that differs. Missing values are None."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted(old.keys() | new.keys()):
            changes += differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        return changes
    return [] if old == new else [(where, old, new)]


def check_same_config(workdir: pathlib.Path, raw: Mapping[str, Any], changeable: tuple[str, ...]) -> None:
    """Checks that the workdir is writable, and is empty or contains a run of the same config.

    Args:
      workdir: folder of the run.
      raw: plain config of the run to start.
      changeable: dotted keys of values and sections that may differ; `*` stands for one name.

    Raises:
      UserError: if the workdir cannot be used for this config.
    """
    if ":/" in str(workdir):
        # Checkpoints and logs need atomic renames, which buckets do not have.
        raise UserError("--workdir", f"{workdir} is a URL", "give a folder; a bucket can be mounted as one")
    path = workdir / "config.json"
    try:
        existing = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    except OSError as error:
        raise UserError("--workdir", f"{_shorten(str(workdir))}: {error.strerror}", "give another folder") from None
    if not existing.is_dir():
        raise UserError("--workdir", f"{existing} is a file", "give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("--workdir", f"{existing} is not writable", "give another folder")
    if not path.exists():
        if workdir.exists() and not all(_precedes_config(child) for child in workdir.iterdir()):
            raise UserError("--workdir", f"{workdir} is not empty and contains no run", "give an empty or a new folder")
        return
    changes = differences(load_json(path, _REMEDY, "--workdir"), raw)
    wrong = [change for change in changes if not _may_differ(workdir, changeable, *change)]
    if wrong:
        # Another dataset changes other keys as well, so name it first, although its location alone may change.
        named = [change for change in changes if change in wrong or _names_dataset(change[0])]
        named.sort(key=lambda change: (not _names_dataset(change[0]), not _is_of_dataset(change[0])))
        listed = ", ".join(f"{where} = {_shorten(old)}, not {_shorten(new)}" for where, old, new in named[:_MAX_NAMED])
        more = f", and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
        remedy = "give another workdir, or the config of that run"
        raise UserError("--workdir", f"{workdir} contains a run with {listed}{more}", remedy)


def _names_dataset(where: str) -> bool:
    """Returns True for the dotted keys of the name and the folder of a dataset."""
    return bool(re.fullmatch(r"data\.(datasets\.\w+\.)?(name|path)", where))


def _is_of_dataset(where: str) -> bool:
    """Returns True for the dotted keys of a dataset's own options, such as `data.task` of the digits."""
    section, _, key = where.partition(".")
    return section == "data" and key.partition(".")[0] not in _SHARED_KEYS


def _may_differ(workdir: pathlib.Path, changeable: tuple[str, ...], where: str, old: Any, new: Any) -> bool:
    return any(_is_within(where, key) for key in changeable) or _is_moved_file(workdir, where, old, new)


def _is_within(where: str, key: str) -> bool:
    """Returns True if the dotted key `where` is `key` or is in the section `key`."""
    names, pattern = where.split("."), key.split(".")
    return len(names) >= len(pattern) and all(map(fnmatch.fnmatchcase, names, pattern))


def _is_moved_file(workdir: pathlib.Path, where: str, old: Any, new: Any) -> bool:
    """Returns True if both paths have the name of a copied preprocessing file; `check_same_files` compares contents."""
    section = where.rpartition(".")[0]
    if not section.startswith("data.inputs.") or not isinstance(old, str) or not isinstance(new, str):
        return False
    name = pathlib.Path(new).name
    return name == pathlib.Path(old).name and _copy(workdir, section[len("data.inputs.") :], name).is_file()


def _copy(workdir: pathlib.Path, modality: str, file: str) -> pathlib.Path:
    return workdir / "preprocessing" / modality / file


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]} …"


def _precedes_config(path: pathlib.Path) -> bool:
    """Returns True for files that a run writes before config.json, so a killed run may leave only these."""
    return path.name in ("preprocessing", lock.NAME) or path.name.startswith(".config.json.")


def check_same_files(workdir: pathlib.Path, modalities: Mapping[str, Modality]) -> None:
    """Raises a UserError if a preprocessing file (such as a tokenizer) has changed since the run started."""
    for name, modality in modalities.items():
        for file in getattr(modality, "files", list)():
            copy = _copy(workdir, name, file.name)
            if copy.is_file() and copy.read_bytes() != file.read_bytes():
                remedy = f"restore it from {copy}, or give another workdir"
                raise UserError(f"data.inputs.{name}", f"{file} has changed since the run started", remedy)


def check_same_data(workdir: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Checks that the data matches the record of the run in the workdir, if there is a run.

    Args:
      workdir: folder of the run.
      found: record of the data; see `mmjax.datasets.recorded.describe`.

    Raises:
      UserError: if the data differs; the message lists all classes, statistics and checksums that differ.
    """
    if (workdir / "config.json").exists():
        problems = recorded.differences(read_record(workdir), found)
        if problems:
            problem = f"is not the data that {workdir} was trained on: {'; '.join(problems)}"
            raise UserError("data", problem, "restore that data, give another workdir, or evaluate with --data=PATH")


def read_record(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the record of the run's data.

    Raises:
      UserError: if it is missing or damaged.
    """
    return recorded.read_record(_record(workdir))


def _record(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "preprocessing" / "dataset.json"


def write_config(
    workdir: pathlib.Path, raw: Mapping[str, Any], modalities: Mapping[str, Modality], record: Mapping[str, Any]
) -> None:
    """Copies the preprocessing files and the record of the data to the workdir, then writes config.json.

    A resumed run keeps its record.
    """
    if not (workdir / "config.json").exists():
        recorded.write_record(_record(workdir), record)
    for name, modality in modalities.items():
        for file in getattr(modality, "files", list)():
            folder = workdir / "preprocessing" / name
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / file.name).exists():
                # Copy and rename, so that a kill leaves no partial file under the final name.
                temporary = folder / f".{file.name}.{os.getpid()}"
                shutil.copyfile(file, temporary)
                os.replace(temporary, folder / file.name)
    write_json(workdir / "config.json", dict(raw))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads a run's config, with the paths of preprocessing files replaced by their copies in the workdir.

    Raises:
      UserError: if the workdir contains no run.
    """
    path = workdir / "config.json"
    if not os.path.isfile(path):
        raise UserError("--workdir", f"{workdir} contains no run", "give the workdir of `mmjax train`")
    raw = load_json(path, _REMEDY, "--workdir")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), dict) for key in ("data", "model", "train")):
        raise UserError("--workdir", f"{path} is not the config of an mmjax run", "give the workdir of `mmjax train`")
    inputs, encoders = raw["data"].get("inputs", {}), raw["model"].get("encoders")
    if not (
        isinstance(inputs, dict) and isinstance(encoders, dict) and all(isinstance(s, dict) for s in inputs.values())
    ):
        raise UserError("--workdir", f"{path} is damaged", "restore it from a copy, or give another workdir")
    for name, section in inputs.items():
        for key, value in section.items():
            copy = _copy(workdir, name, pathlib.Path(str(value)).name)
            if isinstance(value, str) and value and copy.is_file():
                section[key] = str(copy)
    return raw


def provenance() -> dict[str, Any]:
    """Returns package versions, git commit, machine and system of this process; None for unknown values."""
    versions = {**package_versions(), "python": platform.python_version()}
    machine, system = platform.machine(), platform.system()
    return {"versions": versions, "git_commit": git_commit(), "machine": machine, "system": system}
