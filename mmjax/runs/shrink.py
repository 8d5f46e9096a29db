"""Shrinks a recipe so that it trains in seconds on a CPU, but keeps all of its components."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.encoders import ENCODERS
from mmjax.fusion import FUSIONS
from mmjax.tasks import TASKS

STEPS = 2
BATCH_SIZE = 16

_SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "channels": 8}
"""Maximum value of each option, by name."""

_SYNTHETIC = {"image": 64, "recording": 1.0, "examples": 64}
"""Maximum image side in pixels, duration in seconds and number of examples of synthetic data."""


def shrink(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe with the same components, tasks, inputs and augmentations, but small sizes.

    Limits widths, depths, batches and synthetic data. The run trains for two steps on all local devices, logs each
    step, evaluates once and saves one checkpoint.

    Args:
      recipe: plain values, from `mmjax.experiment.plain`.
    """
    small = copy.deepcopy(dict(recipe))
    model, train = small["model"], small["train"]
    for section in model["encoders"].values():
        _shrink_sizes(section, ENCODERS)
    if model.get("fusion"):
        _shrink_sizes(model["fusion"], FUSIONS)
    for section in small["tasks"].values():
        _shrink_sizes(section, TASKS)
    _shrink_data(small["data"])
    slots = (small["data"].get("packing") or {}).get("slots", 1)
    batch_size = BATCH_SIZE * slots * train.get("accumulate", 1)
    train.update(steps=STEPS, batch_size=batch_size)
    if "warmup" in small["schedule"]:
        small["schedule"]["warmup"] = min(small["schedule"]["warmup"], 1)
    small["mesh"] = {**small.get("mesh", {}), "slice": 1, "data": -1, "fsdp": 1, "sequence": 1, "tensor": 1}
    small["log"] = {**small.get("log", {}), "every": 1}
    small["checkpoint"] = {**small.get("checkpoint", {}), "every": STEPS}
    evaluate = small.setdefault("evaluate", {})
    evaluate["every"] = STEPS if evaluate.get("every") else 0
    return small


def _shrink_sizes(section: dict[str, Any], table: Mapping[str, type]) -> None:
    """Limits the sizes of one component, including those set by its defaults or its `variant`."""
    if section["kind"] not in table:
        return  # The config parser reports the unknown kind.
    defaults = {field.name: field.default for field in dataclasses.fields(table[section["kind"]].Config)}  # type: ignore
    for name, maximum in _SIZES.items():
        size = section.get(name) or defaults.get(name)
        if isinstance(size, int) or (name in defaults and section.get("variant")):
            section[name] = min(size, maximum) if isinstance(size, int) else maximum
    if "blocks" in section:
        section["blocks"] = [1] * len(section["blocks"])
    policies = section.get("rematerialise")
    if isinstance(policies, list):
        section["rematerialise"] = policies[: section["depth"]]


def _shrink_data(data: dict[str, Any]) -> None:
    """Limits the size of synthetic data and of the inputs made from it; other datasets keep all examples."""
    data["workers"] = 0
    if data["name"] != "synthetic":
        return
    data["examples"] = _SYNTHETIC["examples"]
    if "image" in data:
        data["image"] = [min(side, _SYNTHETIC["image"]) for side in data["image"][:2]] + data["image"][2:]
    if "recording" in data:
        data["recording"] = min(data["recording"], _SYNTHETIC["recording"])
    for options in data.get("inputs", {}).values():
        if "size" in options:
            options["size"] = [min(side, _SYNTHETIC["image"]) for side in options["size"]]
        if "seconds" in options:
            options["seconds"] = min(options["seconds"], _SYNTHETIC["recording"])
