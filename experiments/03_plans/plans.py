"""Plans the recipes on four kinds of pods, and models with published speeds. Results are stored in `plans.json`.

    python experiments/03_plans/plans.py            # plans that are missing for the installed libtpu
    python experiments/03_plans/plans.py --again    # all plans
    python experiments/03_plans/plans.py --tables   # only rewrites the tables of README.md
    python experiments/03_plans/plans.py siglip_l16 --keep=/tmp/texts   # plans whose names contain this; keeps the HLO
    python experiments/03_plans/big_vision.py --big_vision=PATH         # plans of big_vision
    python experiments/03_plans/growth.py           # one recipe on pods of many sizes

A plan takes minutes and a few GiB. Each runs in its own process, sequentially.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
RECORD = FOLDER / "plans.json"

RECIPES = ("siglip_l16", "siglip_b16", "siglip_so400m", "trimodal_l")
EXAMPLES = 32
BATCH = f"--batch_per_chip={EXAMPLES}"
EIGHT = ["--config.mesh.fsdp=8"]
TOPOLOGIES = {
    "v5e-256": ["--topology=v5e:16x16"],
    "v5p-256": ["--topology=v5p:4x8x8"],
    "v6e-256": ["--topology=v6e:16x16"],
    "tpu7x-256": ["--topology=tpu7x:4x8x8"],
    "v5e-8": ["--topology=v5e:2x4", *EIGHT],
    "v5p-8": ["--topology=v5p:2x2x2", *EIGHT],
    "v6e-8": ["--topology=v6e:2x4", *EIGHT],
    "tpu7x-8": ["--topology=tpu7x:2x2x2"],
    "v5p-2048": ["--topology=v5p:8x16x16"],
    "v6e-8x256": ["--topology=v6e:16x16", "--num_slices=8"],
}

# name: (recipe, flags, published utilisation, source)
PUBLISHED = {
    "32B on v5e-256": (
        "experiments/03_plans/dense.py:32b",
        ["--topology=v5e:16x16", "--batch_per_chip=4"],
        0.6686,
        "MaxText, configs/v5e/README.md and 32b.sh: 2,048 tokens, 4 sequences per chip, full rematerialisation",
    ),
    "32B on v5p-64": (
        "experiments/03_plans/dense.py:32b_minimal",
        ["--topology=v5p:4x4x4", "--batch_per_chip=7", "--config.mesh.fsdp=16", "--config.mesh.tensor=4"],
        0.7147,
        "MaxText, configs/v5p/README.md and 32b.sh: 2,048 tokens, 7 sequences per chip, matmul outputs saved",
    ),
    "PaliGemma on v5e-256": (
        "experiments/03_plans/dense.py:paligemma",
        ["--topology=v5e:16x16", "--batch_per_chip=32"],
        0.55,
        "Beyer et al., PaliGemma (2024), 55 % reported: 224 pixels, 128 text tokens; assuming 32 examples per chip",
    ),
}

LESS_MEMORY = [f"--config.model.encoders.{name}.rematerialise=dots_except_mlp" for name in ("image", "text")]
# Plans to compare with big_vision: (recipe, pod), examples per chip, overrides.
BESIDE = (
    (("siglip_l16", "v5e-256"), 32, []),
    (("siglip_l16", "v5e-256"), 64, []),
    (("siglip_l16", "v5e-256"), 128, LESS_MEMORY),
    (("siglip_b16", "v5e-256"), 128, []),
    (("siglip_so400m", "v5e-256"), 64, LESS_MEMORY),
    (("siglip_l16", "v5p-256"), 128, []),
)


def jobs() -> dict[str, list[str]]:
    """Returns {plan name: arguments of `mmjax plan`}."""
    found = {}
    for name, (recipe, flags, _, _) in PUBLISHED.items():
        found[name] = [f"--config={recipe}", *flags]
    for place, flags in TOPOLOGIES.items():
        for recipe in RECIPES:
            # On eight chips, the smallest recipe replicates its parameters.
            whole = ["--config.mesh.fsdp=1"] if recipe == "siglip_b16" and flags[-1:] == EIGHT else []
            found[f"{recipe} on {place}"] = [f"--config=configs/{recipe}.py", BATCH, *flags, *whole]
    for (recipe, place), examples, changed in BESIDE:
        flags = [f"--batch_per_chip={examples}", *changed, *TOPOLOGIES[place]]
        found[beside_name(recipe, place, examples)] = [f"--config=configs/{recipe}.py", *flags]
    return found


def beside_name(recipe: str, place: str, examples: int) -> str:
    """Name of a plan; equal to that of the recipe table if the batch size is the same."""
    return f"{recipe} on {place}" + (f" at {examples}" if examples != EXAMPLES else "")


def plan(arguments: list[str]) -> dict:
    """Runs `mmjax plan` and returns its JSON output, or {"error"}."""
    command = [sys.executable, "-m", "mmjax", "plan", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def read_record() -> dict[str, dict]:
    """Returns the recorded plans, {name: plan}."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def write_table(title: str, table: str) -> None:
    """Replaces a table between its marks in README.md."""
    page = FOLDER / "README.md"
    text = re.sub(rf"(<!-- {title} -->\n).*?(<!-- end -->)", rf"\g<1>\n{table}\n\n\g<2>", page.read_text(), flags=re.S)
    page.write_text(text)


def kept(name: str, found: dict) -> dict:
    """Records a plan and returns the recorded part."""
    # Drop source locations, which change with every commit.
    found.pop("slowest", None)
    if found.get("memory"):
        found["memory"].pop("largest", None)
    # Read again, because several processes may record at the same time.
    record = read_record()
    record[name] = found
    beside = RECORD.with_suffix(".part")
    beside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    beside.replace(RECORD)
    return found


def main(arguments: list[str]) -> None:
    record = read_record()
    compiler = importlib.metadata.version("libtpu")
    wanted = jobs()
    words = [word for word in arguments if not word.startswith("--")]
    if words:
        wanted = {name: flags for word in words for name, flags in wanted.items() if word in name}
    for folder in (word.partition("=")[2] for word in arguments if word.startswith("--keep=")):
        wanted = {name: [*flags, f"--hlo={folder}/{name}.txt"] for name, flags in wanted.items()}
    for name, flags in () if "--tables" in arguments else wanted.items():
        if record.get(name, {}).get("versions", {}).get("libtpu") == compiler and "--again" not in arguments:
            continue
        found = kept(name, plan(flags))
        shown = {key: found.get(key) for key in ("fits", "peak_bytes", "step_seconds", "utilisation", "error")}
        print(name, shown, flush=True)
    for title, table in {"recipes": recipes_table, "published": published_table, "beside": beside_table}.items():
        write_table(title, table(read_record()))


def mark(found: dict) -> str:
    """Marks a plan that `recost.py` repriced: "r", and "k" if some of its kernels are at their roofline."""
    priced = found.get("repriced")
    return "" if priced is None else " r" if priced == "all" else " r k"


def recipes_table(record: dict) -> str:
    rows = [
        "| recipe | pod | fits | peak of capacity | predicted step | utilisation | examples/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in sorted(RECIPES):
        for place in TOPOLOGIES:
            found = record.get(f"{recipe} on {place}")
            if not found or "error" in found:
                continue
            share = f"{found['peak_bytes'] / 2**30:.1f} of {found['capacity_bytes'] / 2**30:.1f} GiB"
            if found["step_seconds"] is None:
                rows.append(f"| {recipe} | {place} | no | {share} | | | |")
                continue
            low, high = (1e3 * seconds for seconds in found["step_seconds_range"])
            rows.append(
                f"| {recipe} | {place} | {'yes' if found['fits'] else 'no'} | {share} | "
                f"{1e3 * found['step_seconds']:.0f} ms ({low:.0f} to {high:.0f}){mark(found)} | "
                f"{found['utilisation']:.1%} | {found['examples_per_second']:,.0f} |"
            )
    return "\n".join(rows)


def published_table(record: dict) -> str:
    rows = ["| model | published utilisation | predicted | predicted / published | source |", "|---|---|---|---|---|"]
    for name, (_, _, published, source) in PUBLISHED.items():
        found = record.get(name)
        if found and found.get("utilisation") and published:
            predicted = found["utilisation"]
            rows.append(
                f"| {name} | {published:.1%} | {predicted:.1%}{mark(found)} | {predicted / published:.2f} | {source} |"
            )
    return "\n".join(rows)


def beside_table(record: dict) -> str:
    rows = [
        "| step | examples per chip | | peak | communication | compute only | utilisation | speedup |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, place), examples, _ in BESIDE:
        name = beside_name(recipe, place, examples)
        both = {"mmjax": record.get(name), "big_vision": record.get(f"big_vision {name}")}
        if any(found is None or "error" in found for found in both.values()):
            continue
        theirs = both["big_vision"]
        for who, found in both.items():
            who += ", full rematerialisation" if found.get("full_rematerialisation") else ""
            ends = f"{found['peak_bytes'] / 2**30:.1f} GiB"
            if found["step_seconds"] is None:
                rows.append(f"| {recipe} on {place} | {examples} | {who} | {ends}: does not fit | | | | |")
                continue
            moved = sum(row["bytes"] for row in found["collectives"]) / 2**30
            busy = found["compute_seconds"] + found["kernel_seconds"]
            alone = found["model_flops"] / found["peak_flops"] / busy
            ratio = ""
            if who == "mmjax" and theirs["step_seconds"] is not None:
                # Kernels at their roofline make a step look faster than it is.
                bound = "< " if mark(found).endswith("k") else ""
                ratio = f"{bound}{theirs['step_seconds'] / found['step_seconds']:.2f}"
            rows.append(
                f"| {recipe} on {place} | {examples} | {who} | {ends} | {moved:.2f} GiB | {alone:.1%} | "
                f"{found['utilisation']:.1%}{mark(found)} | {ratio} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
