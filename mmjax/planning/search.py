"""Looks for settings that fit, and for those that are fast, by compiling them: nothing is guessed."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.config import build
from mmjax.encoders import ENCODERS
from mmjax.errors import UserError
from mmjax.fusion import FUSIONS
from mmjax.planning.plan import Plan, Planned, make_plan
from mmjax.sharding import MeshConfig

Overrides = dict[str, Any]
"""{"mesh.fsdp": 16}: what a user pastes as --config.mesh.fsdp=16."""

Try = Callable[[Overrides], Plan | None]
"""Plans the recipe with some values changed; None where they contradict each other."""

REMATERIALISATION = ("none", "dots", "dots_except_mlp", "full")
"""From most memory to least."""


def override(raw: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of a recipe's plain values with some of them changed."""
    changed = copy.deepcopy(dict(raw))
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = changed
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return changed


def changed_only(raw: Mapping[str, Any], overrides: Overrides) -> Overrides:
    """Those that say something else than the recipe, in the order of their keys: the same plan has the same ones."""
    return {key: value for key, value in sorted(overrides.items()) if override(raw, {key: value}) != raw}


def flags(overrides: Overrides) -> str:
    """The overrides as flags of the command line."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def trial(recipe: str, topology: str, raw: Mapping[str, Any], build: Callable[[dict[str, Any]], Planned]) -> Try:
    """Plans with overrides, each once; `build` makes an experiment of plain values."""
    known: dict[str, Plan | None] = {}

    def attempt(overrides: Overrides) -> Plan | None:
        key = repr(sorted(overrides.items()))
        if key not in known:
            try:
                known[key] = make_plan(recipe, topology, build(override(raw, overrides)))[0]
            except UserError:
                known[key] = None
            _return_memory()
        return known[key]

    return attempt


def _return_memory() -> None:
    """Gives back what the compiler has freed, which the process keeps otherwise: GiB after a few plans."""
    # Only glibc has it.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def rematerialised(raw: Mapping[str, Any], how: str, only_more: bool = False, only_less: bool = False) -> Overrides:
    """Makes every part of the model that can choose recompute `how`; {} where none can or all do already.

    Args:
      only_more: leaves those as they are that recompute more.
      only_less: leaves those as they are that recompute less.
    """
    found = {}
    for where, table, section in _parts(raw):
        fields = {field.name for field in dataclasses.fields(table[section["kind"]].Config)}
        now = section.get("rematerialise", "none")
        if "rematerialise" not in fields or now == how:
            continue
        # What is no name of a policy is neither more nor less than one.
        further = now in REMATERIALISATION and REMATERIALISATION.index(now) - REMATERIALISATION.index(how)
        if not (only_more and further > 0) and not (only_less and further < 0):
            found[f"{where}.rematerialise"] = how
    return found


def _parts(raw: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(key, table of kinds, section) of each encoder and the fusion."""
    model = raw["model"]
    parts: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
    parts = [(f"model.encoders.{name}", ENCODERS, section) for name, section in model["encoders"].items()]
    return [*parts, ("model.fusion", FUSIONS, model["fusion"])] if model.get("fusion") else parts


def make_it_fit(
    raw: Mapping[str, Any], plan: Plan, shards: int, attempt: Try, say: Callable[[str], None]
) -> tuple[Overrides, Plan] | None:
    """Tries changes, from the one that costs least time to the one that costs most, until the step fits.

    Args:
      plan: the one that does not fit.
      shards: into how many parts the mesh splits a batch.

    Returns:
      The change and its plan; None where nothing helps.
    """
    capacity, need = plan.capacity_bytes or 0, plan.peak_bytes
    fsdp = plan.mesh.get("fsdp", 1)
    state = _state_bytes(plan)
    best: Overrides = {}

    def fits(overrides: Overrides) -> tuple[Overrides, Plan] | None:
        nonlocal need
        say(f"does not fit; compiling with {flags(overrides)}")
        found = attempt(overrides)
        if found is not None:
            need = min(need, found.peak_bytes)
        return (overrides, found) if found is not None and found.fits else None

    if state > 0.4 * capacity and fsdp < plan.devices:
        # Parameters and moments alone take much: activations are not what to save.
        while fsdp < plan.devices and state > 0.2 * capacity:
            fsdp, state = fsdp * 2, state // 2
        best = {"mesh.data": -1, "mesh.fsdp": fsdp}
        if found := fits(best):
            return found
    for how, stays in (("dots_except_mlp", 0.4), ("full", 0.0)):
        recompute = rematerialised(raw, how, only_more=True)
        # More than that part of all that is no state stays: what is hopeless even so is not compiled.
        hopeless = state + stays * (plan.peak_bytes - state) > 1.2 * capacity
        if recompute and not hopeless and (found := fits(best | recompute)):
            return found
    best = best | rematerialised(raw, "full", only_more=True)
    rest, before = plan.batch_size // shards, raw["train"].get("accumulate", 1)
    whole = need
    for parts in _powers(rest // before):
        # At best all that is no state shrinks with the microbatch: what is hopeless even so is not compiled.
        hopeless = state + (whole - state) / parts > 1.2 * capacity
        if parts > 1 and not hopeless and (found := fits({**best, "train.accumulate": parts * before})):
            return found
    for parts in _powers(rest):
        if parts > 1 and (found := fits({**best, "train.batch_size": plan.batch_size // parts})):
            return found
    return None


def _powers(limit: int) -> list[int]:
    return [2**power for power in range(int(math.log2(max(1, limit))) + 1)]


def search(
    raw: Mapping[str, Any], first: Plan, attempt: Try, seconds: float, say: Callable[[str], None]
) -> list[tuple[Overrides, Plan]]:
    """Climbs from the recipe: changes one setting at a time, and keeps what gives more examples/s.

    Args:
      first: the recipe's own plan.
      seconds: after which nothing new is begun.

    Returns:
      All that was tried, the fastest that fits first.
    """
    end = time.monotonic() + seconds
    tried: dict[str, tuple[Overrides, Plan]] = {_settings(raw, first.devices): ({}, first)}
    best: Overrides = {}
    fastest, improved = first, True
    while improved and time.monotonic() < end:
        improved = False
        for step in neighbours(override(raw, best), fastest):
            overrides = changed_only(raw, {**best, **step})
            settings = _settings(override(raw, overrides), first.devices)
            if settings in tried:
                continue
            if time.monotonic() > end:
                break
            say(f"compiling with {flags(overrides)}")
            plan = attempt(overrides)
            if plan is None:
                continue
            tried[settings] = (overrides, plan)
            if score(plan) > score(fastest):
                best, fastest, improved = overrides, plan, True
                break
    return sorted(tried.values(), key=lambda item: -score(item[1]))


def _settings(raw: Mapping[str, Any], devices: int) -> str:
    """What a search changes of a recipe, the same where two recipes say the same in different ways."""
    sizes = build(MeshConfig, raw.get("mesh", {}), "mesh").sizes
    known = math.prod(size for size in sizes if size != -1)
    mesh = [devices // known if size == -1 else size for size in sizes]
    parts = [(where, section.get("rematerialise", "none")) for where, _, section in _parts(raw)]
    return repr((mesh, parts, raw["train"].get("accumulate", 1), raw["train"]["batch_size"]))


def score(plan: Plan) -> float:
    """Examples/s; what does not fit comes last, the less it needs the better."""
    if not plan.fits:
        return -float(plan.peak_bytes)
    return plan.examples_per_second or 0.0


def neighbours(raw: Mapping[str, Any], plan: Plan) -> Iterator[Overrides]:
    """Recipes that differ in one setting: what is computed again, the batch of a chip, the mesh, the microbatches.

    First comes what promises most. Where a step fits, to compute more again only makes it slower, unless it makes room
    for a larger batch.
    """
    parts = raw["train"].get("accumulate", 1)
    if plan.fits:
        for how in REMATERIALISATION:
            if change := rematerialised(raw, how, only_less=True):
                yield change
        yield {"train.batch_size": 2 * plan.batch_size}
        for how in ("dots_except_mlp", "full") if _twice_is_too_much(plan) else ():
            if change := rematerialised(raw, how, only_more=True):
                yield {**change, "train.batch_size": 2 * plan.batch_size}
    fsdp, tensor = plan.mesh.get("fsdp", 1), plan.mesh.get("tensor", 1)
    left = plan.devices // plan.mesh.get("slice", 1) // plan.mesh.get("sequence", 1)
    shapes = [(fsdp // 2, tensor), (fsdp * 2, tensor), (fsdp // 4, tensor), (fsdp, tensor * 2), (fsdp, tensor // 2)]
    for across, inside in shapes:
        if across >= 1 and inside >= 1 and left % (across * inside) == 0:
            yield {"mesh.data": left // (across * inside), "mesh.fsdp": across, "mesh.tensor": inside}
    if not plan.fits:
        for how in REMATERIALISATION[1:]:
            if change := rematerialised(raw, how, only_more=True):
                yield change
        yield {"train.accumulate": 2 * parts}
        yield {"train.batch_size": plan.batch_size // 2}
    elif parts > 1:
        yield {"train.accumulate": parts // 2}


def _twice_is_too_much(plan: Plan) -> bool:
    """Whether twice the batch would hardly fit: all but parameters and moments grows with it."""
    return plan.capacity_bytes is not None and 2 * plan.peak_bytes - _state_bytes(plan) > plan.capacity_bytes


def _state_bytes(plan: Plan) -> int:
    """Of a device's parameters and two moments of each."""
    return 3 * 4 * plan.parameters // (plan.mesh.get("fsdp", 1) * plan.mesh.get("tensor", 1))
