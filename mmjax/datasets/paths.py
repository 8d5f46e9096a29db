"""Absolute paths in the section `data`, so that a run can be opened from any current folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmjax.config import FilePath, path_keys
from mmjax.datasets import DATASETS
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS


def _path_keys(classes: Iterable[Any]) -> dict[str, FilePath]:
    return {key: marker for cls in classes for key, marker in path_keys(cls.Config).items()}


_DATASET = _path_keys(DATASETS.values())
_INPUT = _path_keys(MODALITIES.values())
_AUGMENTATION = _path_keys(cls for table in AUGMENTATIONS.values() for cls in table.values())

LOCATION_KEYS = tuple(f"data.{parent}{key}" for parent in ("", "datasets.*.") for key in sorted(_DATASET))
"""Dotted config keys of the data's location, with `*` for any name."""


def resolve_paths(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plain config whose paths are absolute, with `~` expanded.

    Values of the wrong type are left unchanged; building the config dataclass rejects them and names the key.
    """
    data = _resolve(raw.get("data"), _DATASET)
    if not isinstance(data, dict):
        return dict(raw)
    parts = {
        "datasets": lambda section: _resolve(section, _DATASET),
        "inputs": lambda section: _resolve(section, _INPUT),
        "augment": lambda sections: _each(sections, lambda section: _resolve(section, _AUGMENTATION)),
    }
    resolved = {key: _each(value, parts[key]) if key in parts else value for key, value in data.items()}
    return {**raw, "data": resolved}


def _resolve(section: Any, markers: Mapping[str, FilePath]) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {key: markers[key].absolute(value) if key in markers else value for key, value in section.items()}


def _each(sections: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(sections, Mapping):
        return {name: function(section) for name, section in sections.items()}
    return [function(section) for section in sections] if isinstance(sections, list) else sections
