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
    recipe: str,
    topology: str,
    raw: Mapping[str, Any],
    topology_name: str,
    num_slices: int,
    log: Callable[[str], None],
) -> TimedPlanner:
    """Returns a planner that runs `mmjax plan` in a child process, which ends at the time limit.

    Does not compile kernels: they do not change the memory, and only the table's kernels have static cycles.

    Args:
      recipe: recipe name, for the record.
      topology: topology name, for the record.
      raw: plain values of the recipe.
      topology_name, num_slices: the flags `--topology` and `--num_slices`.
      log: prints the errors of the child.
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
            words += ["--remedy_minutes=0", "--compile_kernels=False"]
            try:
                done = run_child("mmjax", "plan", *words, timeout=seconds)
            except subprocess.TimeoutExpired:
                return None
        if done.returncode:
            log(f"not compiled: {(done.stderr.strip().splitlines() or ['the compiler was killed'])[-1]}")
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
class Trial:
    """A change that `find_fitting` tried.

    Attributes:
      overrides: the change.
      peak_bytes: memory that the compiled step needs; None if it was not compiled.
    """

    overrides: Overrides
    peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Remedy:
    """Result of `find_fitting`.

    Attributes:
      overrides: a change that makes the step fit; None if none was found.
      plan: plan with the change; None if the time ended before it was compiled, but it should fit by its shapes.
      trials: changes that were tried, in order.
      timed_out: True if the time ended before all changes were tried.
    """

    overrides: Overrides | None
    plan: Plan | None
    trials: tuple[Trial, ...] = ()
    timed_out: bool = False


def find_fitting(
    raw: Mapping[str, Any],
    plan: Plan,
    shards: int,
    planner: TimedPlanner,
    log: Callable[[str], None],
    seconds: float = math.inf,
) -> Remedy:
    """Compiles changes of a recipe, in order of their cost in time, until the step fits in memory.

    Order: larger fsdp, more rematerialisation, microbatches, smaller batch. Skips changes that are not expected to fit
    by the recipe's lower bound and the memory of the changes before them.

    Args:
      raw: plain values of the recipe.
      plan: the recipe's plan, which does not fit, with the `bound` of full rematerialisation.
      shards: number of batch shards of the mesh.
      planner: plans the recipe with overrides, within a number of seconds.
      log: prints progress messages.
      seconds: time limit.

    Returns:
      The first change that fits. If the time ends before, the first untested one that should fit by its shapes.
    """
    deadline = time.monotonic() + seconds
    capacity = plan.capacity_bytes or 0
    changes, estimate = list(_changes(raw, plan, shards)), _Estimate(raw, plan)
    trials: list[Trial] = []
    for change in changes:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if estimate.bytes(change) > estimate.margin * capacity:
            continue
        limit = "" if left == math.inf else f"; {left / 60:.1f} minutes left"
        log(f"compiling with {as_flags(change.overrides)}{limit}")
        candidate = planner(change.overrides, left)
        trials.append(Trial(change.overrides, candidate.peak_bytes if candidate else None))
        if candidate is None:
            continue
        if candidate.fits:
            return Remedy(change.overrides, candidate, tuple(trials))
        log(f"does not fit: needs {candidate.peak_bytes / 2**30:,.1f} GiB of {capacity / 2**30:,.1f} GiB")
        estimate.correct(change, candidate.peak_bytes)
    if time.monotonic() < deadline:
        return Remedy(None, None, tuple(trials))
    failed = [trial.overrides for trial in trials if trial.peak_bytes is not None]
    untested = (change for change in changes if change.kept is None and change.overrides not in failed)
    expected = next((each.overrides for each in untested if estimate.bytes(each) <= 0.9 * capacity), None)
    return Remedy(expected, None, tuple(trials), timed_out=True)


@dataclasses.dataclass(frozen=True)
class _Change:
    """A change that `find_fitting` may try, with its effect on the memory.

    Attributes:
      overrides: the change.
      state: bytes of parameters and optimiser.
      kept: estimated share of the recipe's activations that are kept; None with full rematerialisation.
      accumulate: factor of the number of microbatches.
      divisor: factor by which the batch is smaller.
    """

    overrides: Overrides
    state: float
    kept: float | None = None
    accumulate: int = 1
    divisor: int = 1


def _changes(raw: Mapping[str, Any], plan: Plan, shards: int) -> Iterator[_Change]:
    """Yields the candidates of `find_fitting`, in order of their cost in time."""
    assert plan.bound is not None
    fsdp, state = plan.mesh.get("fsdp", 1), float(plan.bound.parameters + plan.bound.optimizer)
    capacity, base = plan.capacity_bytes or 0, Overrides()
    if state > 0.4 * capacity and fsdp < plan.devices:
        # Parameters and moments dominate the memory, so saving activations would not suffice.
        while fsdp < plan.devices and state > 0.2 * capacity:
            fsdp, state = fsdp * 2, state / 2
        base = {"mesh.data": -1, "mesh.fsdp": fsdp}
        yield _Change(base, state, kept=1.0)
    for policy, kept in (("dots_except_mlp", 0.4), ("full", None)):
        if recompute := remat_overrides(raw, policy, only_more=True):
            yield _Change(base | recompute, state, kept)
    base = base | remat_overrides(raw, "full", only_more=True)
    accumulated, shard_size = raw["train"].get("accumulate", 1), plan.batch_size // shards
    for divisor in _powers_of_two(shard_size):
        for factor in _powers_of_two(shard_size // accumulated // divisor):
            if factor * divisor == 1:
                continue
            change: Overrides = {"train.batch_size": plan.batch_size // divisor} if divisor > 1 else {}
            change |= {"train.accumulate": factor * accumulated} if factor > 1 else {}
            yield _Change(base | change, state, None, factor, divisor)


class _Estimate:
    """Estimates the memory of changes from the recipe's plan, and follows that of compiled changes.

    Args:
      raw: plain values of the recipe.
      plan: the recipe's plan, which does not fit, with the `bound` of full rematerialisation.

    Attributes:
      margin: estimates above this share of the capacity are expected not to fit.
    """

    def __init__(self, raw: Mapping[str, Any], plan: Plan):
        assert plan.bound is not None
        self.accumulated = raw["train"].get("accumulate", 1)
        self.batch = plan.bound.batch
        # A compiled step needs about twice the lower bound of its activations.
        self.full = 2.0 * plan.bound.activations
        # Without rematerialisation, a layer keeps at least six arrays, with full rematerialisation one.
        self.own = (6.0 if remat_overrides(raw, "full", only_more=True) else 2.0) * plan.bound.activations
        if plan.compiled:
            # The recipe's own peak is better evidence.
            self.own = float(plan.peak_bytes - plan.bound.parameters - plan.bound.optimizer - self.batch)
            self.full = min(self.full, self.own)
        self.margin = 1.2 if plan.compiled else 0.9
        self.scale = 1.0

    def bytes(self, change: _Change) -> float:
        """Returns the estimated peak memory."""
        activations = self.full if change.kept is None else change.kept * self.own
        # Microbatches add up their gradients in float32. They regroup the batch: libtpu 0.0.42 keeps up to six copies
        # of it.
        gradients, copies = (change.state / 3, 7) if change.accumulate * self.accumulated > 1 else (0.0, 1)
        arrays = (copies * self.batch + activations / change.accumulate) / change.divisor
        return change.state + gradients + self.scale * arrays

    def correct(self, change: _Change, peak_bytes: int) -> None:
        """Scales the estimates of later changes to the memory of a compiled one."""
        if change.kept is None:
            self.scale *= (peak_bytes - change.state) / max(1.0, self.bytes(change) - change.state)


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
