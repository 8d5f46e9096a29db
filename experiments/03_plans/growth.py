"""Step cost by pod size: SigLIP L/16 with 32 examples per chip, on 8 to 2,048 v5p chips.

    python experiments/03_plans/growth.py           # missing plans, then the table and growth.png
    python experiments/03_plans/growth.py --again   # all plans

Only the pod size changes, except that `mesh.fsdp` is 8 instead of 16 on 8 chips. Results are stored in `plans.json`.
"""

from __future__ import annotations

import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER)]

from plans import BATCH, EIGHT, kept, plan, read_record, write_table  # noqa: E402

PODS = {
    8: ["--topology=v5p:2x2x2", *EIGHT],
    32: ["--topology=v5p:2x4x4"],
    128: ["--topology=v5p:4x4x8"],
    512: ["--topology=v5p:8x8x8"],
    2048: ["--topology=v5p:8x16x16"],
}
RECIPE = ["--config=configs/siglip_l16.py", BATCH]


def main(arguments: list[str]) -> None:
    for chips, flags in PODS.items():
        name = f"siglip_l16 on v5p-{chips}"
        if name not in read_record() or "--again" in arguments:
            found = kept(name, plan([*RECIPE, *flags]))
            print(name, {key: found.get(key) for key in ("peak_bytes", "step_seconds", "error")}, flush=True)
    write_table("growth", growth_table(read_record()))
    plot(FOLDER / "growth.png", columns(read_record()))


STEP = "predicted step, ms"


def columns(record: dict) -> dict[int, dict[str, float]]:
    """Returns {chips: figures} of the recorded plans."""
    return {chips: figures(record[f"siglip_l16 on v5p-{chips}"]) for chips in PODS}


def growth_table(record: dict) -> str:
    found = columns(record)
    header = list(next(iter(found.values())))
    rows = [f"| chips | {' | '.join(header)} | step relative to {min(PODS)} chips |", "|---" * (len(header) + 2) + "|"]
    for chips, row in found.items():
        values = " | ".join(f"{value:,.2f}" for value in row.values())
        rows.append(f"| {chips:,} | {values} | {row[STEP] / found[min(PODS)][STEP]:.2f} |")
    return "\n".join(rows)


def figures(found: dict) -> dict[str, float]:
    """Returns the figures of a plan to show, per chip."""
    return {
        "communication, GiB": sum(row["bytes"] for row in found["collectives"]) / 2**30,
        "peak, GiB": found["peak_bytes"] / 2**30,
        STEP: 1e3 * found["step_seconds"],
        "exposed communication, ms": 1e3 * found["exposed_seconds"],
    }


def plot(path: pathlib.Path, columns: dict[int, dict[str, float]]) -> None:
    """Plots each figure against the number of chips in a panel of its own."""
    from matplotlib.figure import Figure

    names = list(next(iter(columns.values())))
    figure = Figure(figsize=(9.6, 2.8), dpi=150, layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        values = [row[name] for row in columns.values()]
        axis.plot(list(columns), values, color="#0072B2", marker="o", markersize=4)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(columns), [f"{chips:,}" for chips in columns], fontsize=8)
        axis.set_ylim(0, 1.25 * max(values))
        axis.set_xlabel("chips")
        axis.grid(axis="y", color="#E5E5E5")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
