"""Predicts memory, step time, collectives and cost of a recipe on TPUs or GPUs, without access to them.

    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16
    mmjax plan --config=configs/siglip_l16.py --topology=v6e:16x16 --num_slices=8 --batch_per_chip=64 --json
    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16 --search --search_minutes=30
    mmjax plan --config=configs/siglip_l16.py --config.mesh.fsdp=8 --topology=h100:4x8
    mmjax plan --config=configs/digits.py

Compiles the train step of `mmjax train` ahead of time, on any machine and without data, with the TPU compiler of the
extra `tpu` (for H100 and H200, the GPU compiler of the extra `cuda`). Without --topology it plans for this machine's
devices. If the step does not fit in memory, the plan reports the missing bytes, first by the shapes and then by the
compiler's error (not compiled if the shapes exceed the memory by far), and searches for a setting that fits, for
--remedy_minutes.

--json prints one object with at least `fits`, `peak_bytes`, `capacity_bytes`, `model_flops`, `cycles`, `step_seconds`,
`utilisation`, `examples_per_second`, `collectives` (each with kind, axis, bytes, hidden) and `chips`. Values are per
device unless named otherwise. See docs/plan.md.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError
from mmjax.files import to_json

if TYPE_CHECKING:
    from mmjax.planning.lower_bound import LowerBound

COMPILED_UP_TO = 1.25
"""Lower bound of the memory over the capacity, above which a step is not compiled."""


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax plan`."""
    define_config(flags)
    string, integer, boolean, floating = (
        absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_bool, absl_flags.DEFINE_float,
    )  # fmt: skip
    string("topology", None, "devices to plan for, like v5e:16x16, v5p:8x8x4 or h100:4x8", flag_values=flags)
    help_text = "number of slices, connected by the data center network"
    integer("num_slices", 1, help_text, lower_bound=1, upper_bound=4096, flag_values=flags)
    integer("batch_per_chip", None, "examples per chip, instead of train.batch_size", lower_bound=1, flag_values=flags)
    floating("examples", None, "training examples, for the total time and cost", lower_bound=1, flag_values=flags)
    floating("price", None, "price of a chip-hour, in any currency", lower_bound=0, flag_values=flags)
    boolean("search", False, "search for faster settings by compiling them", flag_values=flags)
    floating(
        "remedy_minutes",
        5.0,
        "time limit for finding a change that fits; 0 finds none",
        lower_bound=0,
        flag_values=flags,
    )
    floating("search_minutes", 20.0, "time limit for starting new compilations", lower_bound=0, flag_values=flags)
    boolean(
        "compile_kernels",
        True,
        "compile Pallas kernels that are not in the table; if false, they count at their roofline",
        flag_values=flags,
    )
    boolean("json", False, "print one JSON object instead of tables", flag_values=flags)
    string("hlo", None, "file to write the compiled program (HLO text) to", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Prints the plan and, on request, the result of the search."""
    for name in ("examples", "price", "remedy_minutes", "search_minutes"):
        value: Any = flags[name].value
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name}", f"{value} is not finite", "give a finite number")
    if flags.price is not None and flags.examples is None:
        raise UserError("--price", "has no effect without --examples", "give --examples=1e9, for example")
    if flags.topology is not None:
        # Planning runs on the CPU and does not claim a TPU or GPU of this machine.
        os.environ["JAX_PLATFORMS"] = "cpu"
        # Programs compiled for absent devices cannot be loaded from the cache.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from rich.console import Console

    from mmjax.experiment import Experiment, plain
    from mmjax.planning import report, search
    from mmjax.planning.plan import capacity_bytes, cost, make_plan, plan_from_bound

    name, devices = _devices(flags)
    console = Console(quiet=flags.json, highlight=False)
    raw = _apply_flags(plain(flags.config), flags, len(devices))
    recipe = _recipe_name()

    def log(message: str) -> None:
        console.print(message, style="dim", markup=False, soft_wrap=True)

    experiment = Experiment(raw, devices)
    bound = _bound_above_capacity(experiment, raw, devices, log)
    if bound is not None and bound.total > COMPILED_UP_TO * (capacity_bytes(devices[0]) or math.inf):
        log("not compiled: the step cannot fit by its shapes, even with full rematerialisation")
        plan, text = plan_from_bound(recipe, name, experiment, bound), None
    else:
        log(f"compiling the step of {recipe} for {len(devices):,} devices; this takes a minute or two")
        plan, text = make_plan(recipe, name, experiment, log=log, compile_kernels=flags.compile_kernels)
        if not plan.fits:
            plan = dataclasses.replace(plan, bound=bound or _full_bound(experiment, raw, devices))
    if flags.hlo and text is None:
        log(f"{flags.hlo} is not written: the program does not fit in memory")
    elif flags.hlo:
        from mmjax.files import user_path, write_atomically

        write_atomically(user_path(flags.hlo), str(text))
    report.print_plan(console, plan, flags.examples, flags.price)
    result: dict[str, Any] = plan.as_dict()
    if flags.examples is not None and flags.price is not None:
        result["cost"] = cost(plan, flags.examples, flags.price)
    attempt = search.make_planner(recipe, name, raw, lambda changed: Experiment(changed, devices))
    if not plan.fits and flags.remedy_minutes:
        from mmjax.sharding import batch_shards

        log(f"looking for a change that fits, for at most {flags.remedy_minutes:g} minutes (--remedy_minutes)")
        child = search.child_planner(recipe, name, raw, flags.topology, flags.num_slices, log)
        timed = child if flags.topology else lambda overrides, seconds: attempt(overrides)
        shards = batch_shards(experiment.mesh)
        remedy = search.find_fitting(raw, plan, shards, timed, log, 60 * flags.remedy_minutes)
        report.print_remedy(console, remedy, flags.remedy_minutes)
        result["remedy"] = None
        if remedy.overrides is not None:
            compiled = remedy.plan.as_dict() if remedy.plan else {}
            result["remedy"] = {"overrides": remedy.overrides, "compiled": remedy.plan is not None, **compiled}
        result["trials"] = [dataclasses.asdict(trial) for trial in remedy.trials]
    if flags.search:
        ranking = search.search(raw, plan, attempt, 60 * flags.search_minutes, log)
        report.print_ranking(console, ranking)
        result["search"] = [{"overrides": overrides, **candidate.as_dict()} for overrides, candidate in ranking]
    if flags.json:
        print(to_json(result))


def _bound_above_capacity(
    experiment: Any, raw: dict[str, Any], devices: list[Any], log: Callable[[str], None]
) -> LowerBound | None:
    """Returns the lower bound of a step's memory with full rematerialisation if its own bound exceeds the capacity.

    XLA may compute activations again, so the compiler decides up to `COMPILED_UP_TO` times the capacity.
    """
    from mmjax.planning.lower_bound import memory_lower_bound
    from mmjax.planning.plan import capacity_bytes
    from mmjax.planning.report import format_bytes

    capacity = capacity_bytes(experiment.mesh.devices.flat[0])
    own = memory_lower_bound(experiment)
    if capacity is None or own.total <= capacity:
        return None
    log(
        f"by its shapes, the step keeps at least {format_bytes(own.total)} of {format_bytes(capacity)} per device, "
        f"{format_bytes(own.total - capacity)} too much unless the compiler recomputes activations"
    )
    return _full_bound(experiment, raw, devices)


def _full_bound(experiment: Any, raw: dict[str, Any], devices: list[Any]) -> LowerBound:
    """Returns the lower bound of a step's memory with full rematerialisation."""
    from mmjax.experiment import Experiment
    from mmjax.planning.lower_bound import memory_lower_bound
    from mmjax.planning.search import override, remat_overrides

    changes = remat_overrides(raw, "full", only_more=True)
    return memory_lower_bound(Experiment(override(raw, changes), devices) if changes else experiment)


def _devices(flags: absl_flags.FlagValues) -> tuple[str, list[Any]]:
    """Returns the name and devices of --topology, or of this machine without the flag."""
    import jax

    from mmjax.planning.topology import topology_devices

    if flags.topology is None:
        if flags.num_slices > 1:
            raise UserError("--num_slices", "has no effect without --topology", "give a topology, like v6e:16x16")
        return "this machine", jax.devices()
    devices = topology_devices(flags.topology, flags.num_slices)
    return (f"{flags.num_slices} x " if flags.num_slices > 1 else "") + flags.topology, devices


def _apply_flags(raw: dict[str, Any], flags: absl_flags.FlagValues, devices: int) -> dict[str, Any]:
    """Sets `mesh.slice` from --num_slices and `train.batch_size` from --batch_per_chip, in place."""
    if flags.num_slices > 1:
        raw.setdefault("mesh", {}).setdefault("slice", flags.num_slices)
        if raw["mesh"]["slice"] == 1:
            raw["mesh"]["slice"] = flags.num_slices
    if flags.batch_per_chip is not None:
        from mmjax.planning.chips import devices_per_chip

        per_chip = devices_per_chip(flags.topology)
        raw["train"]["batch_size"] = flags.batch_per_chip * devices // per_chip
    return raw


def _recipe_name() -> str:
    """Returns the recipe's path and the overrides, as given on the command line."""
    import sys

    arguments = [argument.lstrip("-") for argument in sys.argv]
    paths = [argument.partition("=")[2] for argument in arguments if argument.startswith("config=")]
    overrides = [argument.removeprefix("config.") for argument in arguments if argument.startswith("config.")]
    return " ".join([paths[-1] if paths else "a recipe", *overrides])
