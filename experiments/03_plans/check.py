"""Fails if a recipe's step needs more memory, cycles or communication than recorded for this libtpu.

    python experiments/03_plans/check.py            # two recipes, cut to two layers: minutes
    python experiments/03_plans/check.py --full     # all plans in plans.json: hours
    python experiments/03_plans/check.py --record   # updates the record of the two-layer recipes
    python experiments/03_plans/check.py --record siglip_b16   # this one only

An increase of more than 5 % is a failure (exit code 1); a missing record for this libtpu is invalid input (exit code
2). Decreases are printed, so that they can be recorded.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
RECORD = FOLDER / "limits.json"
ALLOWED = 1.05
TOPOLOGY = "v5e:2x2"
CUT = ("siglip_b16", "siglip_so400m")
FIGURES = ("peak_bytes", "cycles", "collective_bytes")


def figures(found: dict) -> dict[str, int]:
    """Returns the figures to compare, from a plan as plain values."""
    moved = sum(row["bytes"] for row in found["collectives"])
    return {"peak_bytes": found["peak_bytes"], "cycles": found["cycles"] or 0, "collective_bytes": moved}


def cut(name: str) -> dict[str, int]:
    """Figures of a recipe with two layers in each stack, 8 examples per chip, on four chips."""
    from mmjax.experiment import Experiment
    from mmjax.planning import topology_devices
    from mmjax.planning.plan import make_plan
    from mmjax.recipe import load_recipe

    config = load_recipe(str(ROOT / "configs" / f"{name}.py"))
    for encoder in config.model.encoders.values():
        encoder.depth = 2
    config.mesh = {"data": 1, "fsdp": 4}
    config.train.batch_size = 32
    plan, _ = make_plan(name, TOPOLOGY, Experiment(config, topology_devices(TOPOLOGY)))
    return figures(plan.as_dict())


def compare(name: str, found: dict[str, int], recorded: dict[str, int]) -> bool:
    """Prints each figure with its record. Returns True if all are within the tolerance."""
    good = True
    for figure in FIGURES:
        ratio = found[figure] / recorded[figure] if recorded[figure] else 1.0
        verdict = "rose" if ratio > ALLOWED else "fell: record it" if ratio < 1 / ALLOWED else "ok"
        good &= ratio <= ALLOWED
        print(
            f"{name:28} {figure:17} {found[figure]:>16,} of {recorded[figure]:>16,}  {ratio:.3f}  {verdict}", flush=True
        )
    return good


def main(arguments: list[str]) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(ROOT))
    compiler = importlib.metadata.version("libtpu")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if "--record" in arguments:
        chosen = [name for name in CUT if name in arguments] or CUT
        for name in chosen:
            record.setdefault(compiler, {})[name] = cut(name)
            RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
            print(name, record[compiler][name], flush=True)
        return 0
    if "--full" in arguments:
        return full(compiler)
    if any(name not in record.get(compiler, {}) for name in CUT):
        print(f"check.py: error: libtpu {compiler}: nothing is recorded for it; run with --record", file=sys.stderr)
        return 2
    # Compare all, even after a failure.
    good = [compare(name, cut(name), record[compiler][name]) for name in CUT]
    return 0 if all(good) else 1


def full(compiler: str) -> int:
    import plans

    recorded = json.loads(plans.RECORD.read_text())
    good = True
    for name, flags in plans.jobs().items():
        before = recorded.get(name, {})
        if before.get("versions", {}).get("libtpu") == compiler and before.get("peak_bytes"):
            found = plans.plan(flags)
            good &= "error" not in found and compare(name, figures(found), figures(before))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
