"""Reprices recorded plans with the current costs of kernels and links, without compiling their steps.

    python experiments/03_plans/recost.py

A plan recorded before kernels had static cycles keeps its compiled analysis: cycles, memory, collectives and bytes.
`calls.json` and `mmjax/planning/kernel_cycles.json` price its kernels, if the calls agree with the recorded kernel
time; kernels that are not in the table keep their roofline, a lower bound. The time of collectives grows with that of
their links: exposed collectives by as much, hidden ones stay hidden. Prefetches are not priced: their bytes were not
recorded. `plans.py` writes the tables.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(ROOT), str(FOLDER)]

NOMINAL_LINK = 50 / 45
"""Link rate of the recorded times over the rate of today."""


RECORDED = (
    "kernel_seconds", "collectives", "exposed_seconds", "step_seconds", "examples_per_second",
)  # fmt: skip
"""Times of the compiled analysis, as they were recorded."""


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from kernels import CALLS
    from plans import kept, read_record

    calls = json.loads(CALLS.read_text())
    for name, found in read_record().items():
        compiled_anew = "kernels" in found and "recorded" not in found
        if not compiled_anew and found.get("step_seconds"):
            kept(name, recost(found, calls.get(name, {})))


def recost(found: dict, calls: dict[str, dict[str, int]]) -> dict:
    """Returns a recorded plan with today's times; `calls` are the calls and FLOPs of its kernels."""
    from mmjax.planning.chips import CHIPS
    from mmjax.planning.plan import HIGH_RATIO, LOW_RATIO

    chip = CHIPS[found["device"]]
    recorded = found.get("recorded") or {key: found[key] for key in RECORDED}
    found = found | recorded
    kernels = price_kernels(calls, found, chip)
    rooflines = sum(row["runs"] * row["roofline_seconds"] for row in kernels)
    if not math.isclose(rooflines, found["kernel_seconds"], rel_tol=1e-3):
        # The compiler kept other calls than the traced ones.
        kernels = []
    kernel_seconds = sum(row["runs"] * row["seconds"] for row in kernels) if kernels else found["kernel_seconds"]
    collectives = [price_collective(row, found, chip) for row in found["collectives"]]
    exposed = sum(row["exposed_seconds"] for row in collectives)
    step = found["compute_seconds"] + kernel_seconds + exposed
    known = all(row["source"] != "roofline" for row in kernels) and (kernels or not found["kernel_seconds"])
    return found | {
        "recorded": recorded,
        "kernels": kernels,
        "kernel_seconds": kernel_seconds,
        "collectives": collectives,
        "collective_seconds": sum(row["seconds"] for row in collectives),
        "exposed_seconds": exposed,
        "prefetch_seconds": None,
        "step_seconds": step,
        "step_seconds_range": [LOW_RATIO * step, HIGH_RATIO * step],
        "utilisation": found["model_flops"] / found["peak_flops"] / step,
        "examples_per_second": found["examples_per_second"] * found["step_seconds"] / step,
        "repriced": "all" if known else "kernels at roofline",
    }


def price_kernels(calls: dict[str, dict[str, int]], found: dict, chip) -> list[dict]:
    """Returns the kernels of a plan as `mmjax.planning.plan.KernelSummary` rows."""
    from mmjax.planning.hlo import ARRAY_BITS
    from mmjax.planning.kernel_cycles import COMMITTED
    from mmjax.planning.kernels import CompiledCycles, KernelCost, compiled_seconds

    table = json.loads(COMMITTED.read_text()).get(found["versions"].get("libtpu"), {}).get(found["device"], {})
    rows = []
    for key, call in calls.items():
        name, operands, results = re.fullmatch(r"(\w+)\((.*)\) -> (.*) #\w+", key).groups()
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", f"{operands}, {results}")
        num_bytes = sum(ARRAY_BITS[dtype] // 8 * math.prod(map(int, sizes.split(","))) for dtype, sizes in arrays)
        static, bundles = compiled_seconds(CompiledCycles(*table.get(key, (0, 0))), chip)
        cost = KernelCost(call["flops"] / chip.peak_flops, num_bytes / chip.memory_bandwidth, static, bundles)
        rows.append(
            {
                "name": name,
                "shapes": f"{operands} -> {results}",
                "runs": call["calls"],
                "seconds": cost.seconds,
                "source": cost.source,
                "static_seconds": cost.static_seconds or None,
                "bundle_seconds": cost.bundle_seconds or None,
                "roofline_seconds": cost.roofline_seconds,
            }
        )
    return rows


def price_collective(row: dict, found: dict, chip) -> dict:
    """Returns a row of collectives with today's times. Those over the data centre network keep theirs."""
    if "slice" in row["axis"].split("+"):
        return row
    rounds = 2 if row["kind"] == "all-reduce" else 1
    hops = 1 if row["kind"] == "collective-permute" else rounds * axis_hops(row["axis"].split("+"), found, chip)
    slower = NOMINAL_LINK * row["seconds"]
    seconds = max(slower, row["runs"] * hops * chip.hop_seconds)
    # A collective that queues behind others is exposed for longer than it takes.
    share = min(1.0, row["exposed_seconds"] / row["seconds"]) if row["seconds"] else 0.0
    exposed = NOMINAL_LINK * row["exposed_seconds"] + share * (seconds - slower)
    return row | {"seconds": seconds, "exposed_seconds": exposed}


def axis_hops(axes: list[str], found: dict, chip) -> int:
    """Returns the links to the farthest member of a group along mesh axes."""
    import numpy as np

    from mmjax.planning import topology_devices
    from mmjax.planning.collectives import group_topology
    from mmjax.sharding import MeshConfig, make_mesh

    slices, _, topology = found["topology"].rpartition(" x ")
    devices = topology_devices(topology, int(slices or 1))
    mesh = make_mesh(MeshConfig(**{"data": 1, **found["mesh"]}), devices)
    indices = np.arange(mesh.size).reshape(mesh.devices.shape)
    first = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return group_topology(indices[first].ravel(), mesh, chip).hops


if __name__ == "__main__":
    main()
