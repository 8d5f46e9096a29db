"""What a recipe's training step needs on a TPU pod that you do not have: memory, time, collectives, cost.

    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16
    mmjax plan --config=configs/siglip_l16.py --topology=v6e:16x16 --num_slices=8 --batch_per_chip=64 --json
    mmjax plan --config=configs/siglip_l16.py --topology=v5e:16x16 --search --search_minutes=30
    mmjax plan --config=configs/siglip_l16.py --config.mesh.fsdp=8 --topology=h100:4x8
    mmjax plan --config=configs/digits.py

Compiles the very step that `mmjax train` runs, with the TPU compiler of the extra `tpu` (for H100 and H200 that of the
extra `cuda`), on any machine; no data is read. Without --topology it plans for the devices of this machine. A step that
does not fit is no error: the plan says how much is missing and finds a change that makes it fit. --json prints one
object with at least `fits`, `peak_bytes`, `capacity_bytes`, `model_flops`, `cycles`, `step_seconds`, `utilisation`,
`examples_per_second`, `collectives` (each with kind, axis, bytes, hidden) and `chips`, for one device unless named
otherwise. See docs/plan.md.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags)
    string, integer, boolean, number = (
        absl_flags.DEFINE_string, absl_flags.DEFINE_integer, absl_flags.DEFINE_bool, absl_flags.DEFINE_float,
    )  # fmt: skip
    string("topology", None, "devices to plan for, like v5e:16x16, v5p:8x8x4, h100:4x8", flag_values=flags)
    integer("num_slices", 1, "slices of that topology, connected by the network", lower_bound=1, flag_values=flags)
    integer("batch_per_chip", None, "examples a chip, in place of train.batch_size", lower_bound=1, flag_values=flags)
    number("examples", None, "how many examples to give the time and the cost of", lower_bound=1, flag_values=flags)
    number("price", None, "of a chip-hour, in any currency", lower_bound=0, flag_values=flags)
    boolean("search", False, "look for faster settings by compiling them", flag_values=flags)
    number("search_minutes", 20.0, "after which a search begins nothing new", lower_bound=0, flag_values=flags)
    boolean("json", False, "print one JSON object instead of tables", flag_values=flags)
    string("hlo", None, "file for the text of the compiled program", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if flags.price is not None and flags.examples is None:
        raise UserError("--price", "says nothing without --examples", "give --examples=1e9, for example")
    if flags.topology is not None:
        # The plan itself is made on the CPU: a TPU or GPU of this machine is left alone.
        os.environ["JAX_PLATFORMS"] = "cpu"
        # What is compiled for devices that are not here cannot be loaded again.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    from rich.console import Console

    from mmjax.experiment import Experiment, plain
    from mmjax.planning import report, search
    from mmjax.planning.plan import cost, make_plan

    name, devices = _devices(flags)
    console = Console(quiet=flags.json, highlight=False)
    raw = _adapted(plain(flags.config), flags, len(devices))
    recipe = _recipe_name(flags)

    def say(what: str) -> None:
        console.print(what, style="dim", markup=False, soft_wrap=True)

    say(f"compiling the step of {recipe} for {len(devices):,} devices; this takes a minute or two")
    experiment = Experiment(raw, devices)
    plan, text = make_plan(recipe, name, experiment)
    if flags.hlo and text is None:
        say(f"{flags.hlo} is not written: there is no program that fits")
    elif flags.hlo:
        from mmjax.files import write_atomically

        write_atomically(pathlib.Path(flags.hlo), str(text))
    report.print_plan(console, plan, flags.examples, flags.price)
    found: dict[str, Any] = plan.as_dict()
    if flags.examples is not None and flags.price is not None:
        found["cost"] = cost(plan, flags.examples, flags.price)
    attempt = search.make_planner(recipe, name, raw, lambda changed: Experiment(changed, devices))
    if not plan.fits:
        from mmjax.sharding import batch_shards

        remedy = search.find_fitting(raw, plan, batch_shards(experiment.mesh), attempt, say)
        report.print_remedy(console, remedy)
        found["remedy"] = None if remedy is None else {"overrides": remedy[0], **remedy[1].as_dict()}
    if flags.search:
        ranking = search.search(raw, plan, attempt, 60 * flags.search_minutes, say)
        report.print_ranking(console, ranking)
        found["search"] = [{"overrides": overrides, **each.as_dict()} for overrides, each in ranking]
    if flags.json:
        print(json.dumps(found))


def _devices(flags: absl_flags.FlagValues) -> tuple[str, list[Any]]:
    """The name and the devices of the topology, or of this machine."""
    import jax

    from mmjax.planning.topology import topology_devices

    if flags.topology is None:
        if flags.num_slices > 1:
            raise UserError("--num_slices", "says nothing without --topology", "give --topology=v6e:16x16, for example")
        return "this machine", jax.devices()
    devices = topology_devices(flags.topology, flags.num_slices)
    return (f"{flags.num_slices} x " if flags.num_slices > 1 else "") + flags.topology, devices


def _adapted(raw: dict[str, Any], flags: absl_flags.FlagValues, devices: int) -> dict[str, Any]:
    """The recipe with what the flags say of slices and batch."""
    if flags.num_slices > 1:
        raw.setdefault("mesh", {}).setdefault("slice", flags.num_slices)
        if raw["mesh"]["slice"] == 1:
            raw["mesh"]["slice"] = flags.num_slices
    if flags.batch_per_chip is not None:
        from mmjax.planning.chips import devices_per_chip

        per_chip = devices_per_chip(flags.topology)
        raw["train"]["batch_size"] = flags.batch_per_chip * devices // per_chip
    return raw


def _recipe_name(flags: absl_flags.FlagValues) -> str:
    import sys

    words = [word.partition("=")[2] for word in sys.argv if word.lstrip("-").startswith("config=")]
    changed = [word.lstrip("-").removeprefix("config.") for word in sys.argv if word.lstrip("-").startswith("config.")]
    return " ".join([words[-1] if words else "a recipe", *changed])
