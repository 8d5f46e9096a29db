"""Searches for settings that fit in memory, or that are fastest, by compiling each candidate."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import json
import math
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmjax.config import build
from mmjax.encoders import ENCODERS
from mmjax.errors import UserError
from mmjax.fusion import FUSIONS
from mmjax.planning.child import run_child
from mmjax.planning.kernel_cycles import KernelCycles
from mmjax.planning.plan import Plan, Plannable, make_plan, plan_from_dict, versions
from mmjax.sharding import MeshConfig

Overrides = dict[str, Any]
"""Config overrides by dotted key: {"mesh.fsdp": 16} is the flag --config.mesh.fsdp=16."""

Planner = Callable[[Overrides], Plan | None]
"""Plans the recipe with overrides; returns None for invalid combinations."""

TimedPlanner = Callable[[Overrides, float], Plan | None]
"""Plans the recipe with overrides within a number of seconds; returns None for invalid ones, or if the time ends."""

REMATERIALISATION = ("none", "dots", "dots_except_mlp", "full")
"""Rematerialisation policies, from most to least memory."""


def override(raw: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Returns a copy of a recipe's plain values with the overrides applied."""
    changed = copy.deepcopy(dict(raw))
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = changed
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return changed


def effective_overrides(raw: Mapping[str, Any], overrides: Overrides) -> Overrides:
    """Returns the overrides that change the recipe, sorted by key, so that equal settings compare equal."""
    return {key: value for key, value in sorted(overrides.items()) if override(raw, {key: value}) != raw}


def as_flags(overrides: Overrides) -> str:
    """Formats overrides as command-line flags."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def make_planner(
    recipe: str, topology: str, raw: Mapping[str, Any], build_experiment: Callable[[dict[str, Any]], Plannable]
) -> Planner:
    """Returns a memoized planner of the recipe; `build_experiment` makes an experiment from plain config values."""
    cache: dict[str, Plan | None] = {}
    version = versions().get("libtpu")
    cycles = KernelCycles(version) if version else None

    def planner(overrides: Overrides) -> Plan | None:
        key = repr(sorted(overrides.items()))
        if key not in cache:
            try:
                cache[key] = make_plan(recipe, topology, build_experiment(override(raw, overrides)), cycles)[0]
            except UserError:
                cache[key] = None
            _trim_heap()
        return cache[key]

    return planner


def child_planner(
    recipe: str, topology: str, raw: Mapping[str, Any], topology_name: str, num_slices: int
) -> TimedPlanner:
    """Returns a planner that runs `mmjax plan` in a child process, which ends at the time limit.

    Args:
      recipe: recipe name, for the record.
      topology: topology name, for the record.
      raw: plain values of the recipe.
      topology_name, num_slices: the flags `--topology` and `--num_slices`.
    """

    def planner(overrides: Overrides, seconds: float) -> Plan | None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "recipe.py"
            values = json.dumps(override(raw, overrides))
            path.write_text(
                "import json\n\nfrom ml_collections import ConfigDict\n\n\n"
                f"def get_config():\n    return ConfigDict(json.loads({values!r}))\n"
            )
            words = [f"--config={path}", f"--topology={topology_name}", f"--num_slices={num_slices}", "--json"]
            words.append("--remedy_minutes=0")
            try:
                done = run_child("mmjax", "plan", *words, timeout=seconds)
            except subprocess.TimeoutExpired:
                return None
        if done.returncode:
            return None
        return dataclasses.replace(
            plan_from_dict(json.loads(done.stdout.splitlines()[-1])), recipe=recipe, topology=topology
        )

    return planner


def _trim_heap() -> None:
    """Returns freed heap memory to the OS; the compiler leaves GiB after a few plans."""
    # malloc_trim exists in glibc only.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def remat_overrides(raw: Mapping[str, Any], policy: str, only_more: bool = False, only_less: bool = False) -> Overrides:
    """Returns overrides that set the rematerialisation policy of all encoders and the fusion that support it.

    Args:
      raw: plain values of the recipe.
      policy: one of `REMATERIALISATION`.
      only_more: skips parts that already recompute more.
      only_less: skips parts that already recompute less.
    """
    overrides = {}
    for key, table, section in _parts(raw):
        fields = {field.name for field in dataclasses.fields(table[section["kind"]].Config)}
        current = section.get("rematerialise", "none")
        if "rematerialise" not in fields or current == policy:
            continue
        # A custom value has no rank: count it as equal to the policy.
        excess = current in REMATERIALISATION and REMATERIALISATION.index(current) - REMATERIALISATION.index(policy)
        if not (only_more and excess > 0) and not (only_less and excess < 0):
            overrides[f"{key}.rematerialise"] = policy
    return overrides


def _parts(raw: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Returns (config key, table of kinds, section) of each encoder and the fusion."""
    model = raw["model"]
    parts: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
    parts = [(f"model.encoders.{name}", ENCODERS, section) for name, section in model["encoders"].items()]
    return [*parts, ("model.fusion", FUSIONS, model["fusion"])] if model.get("fusion") else parts


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Overrides that make a step fit.

    Attributes:
      overrides: the change.
      plan: its plan; None if it should fit by its shapes, but the time ended before it was compiled.
    """

    overrides: Overrides
    plan: Plan | None


def find_fitting(
    raw: Mapping[str, Any],
    plan: Plan,
    shards: int,
    planner: TimedPlanner,
    log: Callable[[str], None],
    seconds: float = math.inf,
) -> Remedy | None:
    """Compiles overrides in order of their cost in time until the step fits in memory.

    Order: larger fsdp, more rematerialisation, microbatches, smaller batch. Skips candidates that cannot fit by the
    memory of those before them, or, if the recipe was not compiled, by its lower bound.

    Args:
      raw: plain values of the recipe.
      plan: the recipe's plan, which does not fit.
      shards: number of batch shards of the mesh.
      planner: plans the recipe with overrides, within a number of seconds.
      log: prints progress messages.
      seconds: time limit.

    Returns:
      The first change that fits; None if there is none.
    """
    deadline = time.monotonic() + seconds
    capacity = plan.capacity_bytes or 0
    fsdp, state = plan.mesh.get("fsdp", 1), _state_bytes(plan)
    batch = plan.bound.batch if plan.bound else 0
    # A compiled step needs about twice the activations' lower bound; its own peak is better evidence.
    activations = 2 * plan.bound.activations if plan.bound and not plan.compiled else plan.peak_bytes - state - batch
    margin = 1.2 if plan.compiled else 0.9
    scale = 1.0
    base: Overrides = {}
    last: Overrides | None = None

    def expected(accumulate: int = 1, divisor: int = 1, kept: float = 1.0) -> float:
        # Microbatches add up their gradients in float32. They regroup the batch: libtpu 0.0.42 keeps up to six
        # copies of it.
        gradients, arrays = (state / 3, 7) if accumulate > 1 else (0, 1)
        return state + gradients + scale * (arrays * batch + kept * activations / accumulate) / divisor

    def try_fit(overrides: Overrides) -> Remedy | None:
        nonlocal scale, last
        last, left = overrides, deadline - time.monotonic()
        if left <= 0:
            return None
        limit = "" if left == math.inf else f"; {left / 60:.1f} minutes left"
        log(f"does not fit; compiling with {as_flags(overrides)}{limit}")
        candidate = planner(overrides, left)
        if candidate is None:
            return None
        if candidate.fits:
            return Remedy(overrides, candidate)
        log(f"needs {candidate.peak_bytes / 2**30:,.1f} GiB of {capacity / 2**30:,.1f} GiB")
        # Correct the expectation of later candidates: down from the recipe's peak, up from the lower bound.
        factor = overrides.get("train.accumulate", accumulated) // accumulated
        divisor = plan.batch_size // overrides.get("train.batch_size", plan.batch_size)
        measured = (candidate.peak_bytes - state) / max(1.0, expected(factor, divisor) - state)
        scale *= min(1.0, measured) if plan.compiled else max(1.0, measured)
        return None

    accumulated = raw["train"].get("accumulate", 1)
    if state > 0.4 * capacity and fsdp < plan.devices:
        # Parameters and moments dominate the memory, so saving activations would not suffice.
        while fsdp < plan.devices and state > 0.2 * capacity:
            fsdp, state = fsdp * 2, state // 2
        base = {"mesh.data": -1, "mesh.fsdp": fsdp}
        if (expected() <= margin * capacity or plan.compiled) and (fit := try_fit(base)):
            return fit
    # `kept` is a lower bound on the share of activations that the policy keeps.
    for policy, kept in (("dots_except_mlp", 0.4), ("full", 0.0 if plan.compiled else 1.0)):
        recompute = remat_overrides(raw, policy, only_more=True)
        if recompute and expected(kept=kept) <= margin * capacity and (fit := try_fit(base | recompute)):
            return fit
    base = base | remat_overrides(raw, "full", only_more=True)
    shard_size = plan.batch_size // shards
    for divisor in _powers_of_two(shard_size):
        for factor in _powers_of_two(shard_size // accumulated // divisor):
            if factor * divisor == 1 or expected(factor, divisor) > margin * capacity:
                continue
            change: Overrides = {"train.batch_size": plan.batch_size // divisor} if divisor > 1 else {}
            change |= {"train.accumulate": factor * accumulated} if factor > 1 else {}
            if fit := try_fit(base | change):
                return fit
            if time.monotonic() >= deadline:
                return Remedy(base | change, None)
    return None if last is None or time.monotonic() < deadline else Remedy(last, None)


def _powers_of_two(limit: int) -> list[int]:
    """Returns the powers of two from 1 to `limit`."""
    return [2**power for power in range(int(math.log2(max(1, limit))) + 1)]


def search(
    raw: Mapping[str, Any], first: Plan, planner: Planner, seconds: float, log: Callable[[str], None]
) -> list[tuple[Overrides, Plan]]:
    """Hill climbing from the recipe: changes one setting at a time and keeps changes that raise examples/s.

    Args:
      raw: plain values of the recipe.
      first: plan of the unchanged recipe.
      planner: plans the recipe with overrides.
      seconds: time limit, after which no new candidate is compiled.
      log: prints progress messages.

    Returns:
      All candidates as (overrides, plan), best first by `score`.
    """
    deadline = time.monotonic() + seconds
    tried: dict[str, tuple[Overrides, Plan]] = {_settings(raw, first.devices): ({}, first)}
    best: Overrides = {}
    fastest, improved = first, True
    while improved and time.monotonic() < deadline:
        improved = False
        for change in neighbours(override(raw, best), fastest):
            overrides = effective_overrides(raw, {**best, **change})
            settings = _settings(override(raw, overrides), first.devices)
            if settings in tried:
                continue
            if time.monotonic() > deadline:
                break
            log(f"compiling with {as_flags(overrides)}")
            plan = planner(overrides)
            if plan is None:
                continue
            tried[settings] = (overrides, plan)
            if score(plan) > score(fastest):
                best, fastest, improved = overrides, plan, True
                break
    return sorted(tried.values(), key=lambda item: -score(item[1]))


def _settings(raw: Mapping[str, Any], devices: int) -> str:
    """Returns a canonical key of the searched settings, equal for equivalent recipes."""
    sizes = build(MeshConfig, raw.get("mesh", {}), "mesh").sizes
    fixed = math.prod(size for size in sizes if size != -1)
    mesh = [devices // fixed if size == -1 else size for size in sizes]
    policies = [(key, section.get("rematerialise", "none")) for key, _, section in _parts(raw)]
    return repr((mesh, policies, raw["train"].get("accumulate", 1), raw["train"]["batch_size"]))


def score(plan: Plan) -> float:
    """Returns examples/s of a plan; plans that do not fit score the negative of their peak memory."""
    if not plan.fits:
        return -float(plan.peak_bytes)
    return plan.examples_per_second or 0.0


def neighbours(raw: Mapping[str, Any], plan: Plan) -> Iterator[Overrides]:
    """Yields overrides that change one setting: rematerialisation, batch size, mesh or microbatches.

    The most promising come first. If the step fits, more rematerialisation is paired with a larger batch, because by
    itself it only slows the step.
    """
    accumulate = raw["train"].get("accumulate", 1)
    if plan.fits:
        for policy in REMATERIALISATION:
            if change := remat_overrides(raw, policy, only_less=True):
                yield change
        yield {"train.batch_size": 2 * plan.batch_size}
        for policy in ("dots_except_mlp", "full") if _double_batch_exceeds(plan) else ():
            if change := remat_overrides(raw, policy, only_more=True):
                yield {**change, "train.batch_size": 2 * plan.batch_size}
    fsdp, tensor = plan.mesh.get("fsdp", 1), plan.mesh.get("tensor", 1)
    remaining = plan.devices // plan.mesh.get("slice", 1) // plan.mesh.get("sequence", 1)
    sizes = [(fsdp // 2, tensor), (fsdp * 2, tensor), (fsdp // 4, tensor), (fsdp, tensor * 2), (fsdp, tensor // 2)]
    for fsdp, tensor in sizes:
        if fsdp >= 1 and tensor >= 1 and remaining % (fsdp * tensor) == 0:
            yield {"mesh.data": remaining // (fsdp * tensor), "mesh.fsdp": fsdp, "mesh.tensor": tensor}
    if not plan.fits:
        for policy in REMATERIALISATION[1:]:
            if change := remat_overrides(raw, policy, only_more=True):
                yield change
        yield {"train.accumulate": 2 * accumulate}
        yield {"train.batch_size": plan.batch_size // 2}
    elif accumulate > 1:
        yield {"train.accumulate": accumulate // 2}


def _double_batch_exceeds(plan: Plan) -> bool:
    """Predicts whether a doubled batch exceeds the memory: all but parameters and moments doubles."""
    return plan.capacity_bytes is not None and 2 * plan.peak_bytes - _state_bytes(plan) > plan.capacity_bytes


def _state_bytes(plan: Plan) -> int:
    """Returns the bytes per device of float32 parameters and Adam's two moments."""
    return 3 * 4 * plan.parameters // (plan.mesh.get("fsdp", 1) * plan.mesh.get("tensor", 1))
