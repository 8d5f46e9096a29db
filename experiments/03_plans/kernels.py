"""Compiles the Pallas kernels of the recorded plans, for `mmjax/planning/kernel_cycles.json`, and counts their calls.

    python experiments/03_plans/kernels.py              # those that are not in the table
    python experiments/03_plans/kernels.py siglip_l16   # of plans whose name has this in it
    python experiments/03_plans/kernels.py --calls      # only counts the calls

Traces each recipe for its devices without compiling its step. `calls.json` keeps the calls per step and the FLOPs of a
call, {plan: {kernel: …}}, with which `recost.py` prices the recorded plans.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
CALLS = FOLDER / "calls.json"
sys.path[:0] = [str(ROOT), str(FOLDER)]

from growth import PODS, RECIPE  # noqa: E402
from plans import jobs  # noqa: E402


def trace(arguments: list[str]):
    """Returns (devices, {kernel: calls per step}) of the step that `mmjax plan` with these flags compiles."""
    from absl import flags as absl_flags

    from mmjax.__main__ import _parse
    from mmjax.commands import plan as command
    from mmjax.experiment import Experiment, plain
    from mmjax.planning.kernels import count_kernel_calls

    flags = absl_flags.FlagValues()
    command.define_flags(flags)
    _parse("plan", flags, arguments)
    _, devices = command._devices(flags)
    raw = command._apply_flags(plain(flags.config), flags, len(devices))
    return devices, count_kernel_calls(Experiment(raw, devices).trace_step().jaxpr)


def main(arguments: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.chdir(ROOT)
    from mmjax.planning import kernel_cycles
    from mmjax.planning.kernel_cycles import COMMITTED, KernelCycles

    # A busy machine must not leave a kernel out of the table.
    kernel_cycles.KERNEL_SECONDS = 3600.0
    table = KernelCycles(importlib.metadata.version("libtpu"), written=COMMITTED)
    compiled = "--calls" not in arguments
    arguments = [word for word in arguments if not word.startswith("--")]
    grown = {f"siglip_l16 on v5p-{chips}": [*RECIPE, *flags] for chips, flags in PODS.items()}
    for name, flags in (jobs() | grown).items():
        if arguments and not any(word in name for word in arguments):
            continue
        devices, kernels = trace(flags)
        calls = json.loads(CALLS.read_text()) if CALLS.exists() else {}
        calls[name] = {kernel.key: {"calls": count, "flops": kernel.flops} for kernel, count in kernels.items()}
        CALLS.write_text(json.dumps(calls, indent=1, sort_keys=True) + "\n")
        if not compiled:
            continue
        topology = next(flag.partition("=")[2] for flag in flags if flag.startswith("--topology="))
        one = topology.partition(":")[0] + (":2x2" if topology.startswith(("v5e", "v6e")) else ":2x2x1")
        table.compile_missing(devices[0].device_kind, one, kernels, print)
        for kernel, count in kernels.items():
            print(name, count, kernel.key, table.find(devices[0].device_kind, kernel), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
