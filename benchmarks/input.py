"""Compares the throughput of the input pipeline on JPEG, WAV and text with PyTorch's DataLoader and plain Grain.

    python benchmarks/input.py --torch=PYTHON [--workers=0,2] [--turns=3] [--json=FILE]

    python3 -m venv peer && peer/bin/pip install torch pillow scipy       # then --torch=peer/bin/python

All produce batches of 64 examples: images of 224 x 224 from photographs of 427 x 640, two seconds of audio at 16 kHz
from 44.1 kHz, 64 bytes of text and a label. PyTorch and Grain read the files listed in a table; mmjax reads shards that
`mmjax prepare` writes from that table. "reduced" uses shards prepared with `reduce.image.shortest=256` and
`reduce.audio.rate=16000`, which does part of the work once instead of in every epoch. Each measurement runs in its own
process, and contenders alternate.

Prints examples per second of wall time and of CPU time, peak memory, and ratios to mmjax: above 1, mmjax is better. On
a busy machine, use CPU time.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags as absl_flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from loading import RATE, Settings  # noqa: E402
from machine import host  # noqa: E402

from mmjax.errors import UserError  # noqa: E402

REDUCED = "mmjax, reduced"
CONTENDERS = {"mmjax": "mmjax_input", REDUCED: "mmjax_input", "torch": "torch_input", "grain": "grain_input"}


def define_flags() -> absl_flags.FlagValues:
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_string(
        "torch", "", "Python interpreter with torch, pillow and scipy; torch is skipped without it", flag_values=flags
    )
    absl_flags.DEFINE_list("workers", ["0", "2"], "numbers of worker processes", flag_values=flags)
    absl_flags.DEFINE_integer("turns", 3, "runs of each contender", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("batches", 16, "timed batches per run", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("examples", 512, "number of distinct examples", lower_bound=64, flag_values=flags)
    absl_flags.DEFINE_string("json", "", "file for all results", flag_values=flags)
    return flags


def main(arguments: list[str]) -> int:
    flags = define_flags()
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{flags.get_help()}")
        return 0
    try:
        flags(arguments)
        workers = [int(word) for word in flags.workers]
    except (absl_flags.Error, ValueError) as error:
        print(f"input.py: error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        make_data(pathlib.Path(folder), flags.examples)
        found: dict[str, Any] = {"host": host(), "examples": flags.examples, "runs": []}
        for turn in range(flags.turns):
            for count in workers:
                # Each turn starts with another contender.
                names = list(CONTENDERS)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    run = {"contender": name, "workers": count, "turn": turn}
                    prepared = "reduced" if name == REDUCED else "prepared"
                    settings = Settings(data=folder, prepared=prepared, workers=count, batches=flags.batches)
                    run |= in_a_process(name, settings, flags.torch)
                    found["runs"].append(run)
                    problem = run.get("missing") or run.get("failed")
                    outcome = problem or f"{run['examples'] / run['wall']:.0f} examples/s"
                    print(f"turn {turn + 1}, {count} workers, {name}: {outcome}", file=sys.stderr, flush=True)
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0


def make_data(folder: pathlib.Path, examples: int) -> None:
    """Writes photographs, recordings and captions with a table, and prepares them."""
    import PIL.Image
    import scipy.io.wavfile
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    rows = []
    for number in range(examples):
        pixels = np.roll(photographs[number % 2], rng.integers(0, 400, 2), (0, 1))
        # Make all images different, so that `prepare` finds no duplicates.
        pixels = np.clip(pixels + rng.normal(0, 12, pixels.shape) + rng.integers(-40, 40, 3), 0, 255)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
        samples = (3000 * rng.normal(size=2 * 44_100)).astype(np.int16)
        scipy.io.wavfile.write(folder / f"{number}.wav", 44_100, samples)
        words = " ".join("abcdefghijklmnopqrstuvwxyz"[letter] * 4 for letter in rng.integers(0, 26, 9))
        rows.append([f"{number}.jpg", f"{number}.wav", words, number % 10])
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["picture", "sound", "caption", "label"], *rows])
    command = [sys.executable, "-m", "mmjax", "prepare", f"--source={folder / 'data.csv'}"]
    command += ["--columns=picture=picture:image,sound=sound:audio,caption=caption:text,label=label:label"]
    command += ["--splits=train=1", "--keep=duplicate,boilerplate,language,clipped"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    reduce = ["--set=reduce.image.shortest=256", f"--set=reduce.audio.rate={RATE}"]
    for name, options in (("prepared", []), ("reduced", reduce)):
        words = [*command, *options, f"--output={folder / name}"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError("mmjax prepare", done.stderr.strip(), "correct the cause")


def in_a_process(name: str, settings: Settings, torch: str) -> dict[str, Any]:
    """Runs a contender in a process. Returns its output, "missing" or "failed"."""
    python = torch if name == "torch" else sys.executable
    if not python:
        return {"missing": "give a Python interpreter with torch as --torch"}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    if name != "torch":
        environment["PYTHONPATH"] = str(ROOT)
    program = ROOT / "benchmarks" / "peers" / f"{CONTENDERS[name]}.py"
    command = [python, str(program), json.dumps(vars(settings))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    found = json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.startswith('{"read"')]
    return found | ({"stages": json.loads(lines[-1])} if lines else {})


def table(found: dict[str, Any]) -> str:
    """Formats medians over turns as Markdown."""
    lines = [
        f"{found['host']}; {found['examples']} examples",
        "",
        "| workers | contender | examples/s | examples/s per core | ratio | peak MiB | worker peak MiB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    runs = [run for run in found["runs"] if "wall" in run]
    for workers in dict.fromkeys(run["workers"] for run in runs):
        ours = None
        for name in CONTENDERS:
            mine = [run for run in runs if (run["workers"], run["contender"]) == (workers, name)]
            if not mine:
                continue
            clock = statistics.median(run["examples"] / run["wall"] for run in mine)
            core = statistics.median(run["examples"] / run["processor"] for run in mine)
            ours = core if name == "mmjax" else ours
            peak, child = (max(run[key] for run in mine) / 2**20 for key in ("peak", "child_peak"))
            ratio = f"{ours / core:.2f}" if ours else ""
            lines.append(f"| {workers} | {name} | {clock:.0f} | {core:.0f} | {ratio} | {peak:.0f} | {child:.0f} |")
    for name in CONTENDERS:
        stages = [run["stages"] for run in runs if run["contender"] == name and "stages" in run]
        if stages:
            means = {stage: statistics.median(each[stage] for each in stages) for stage in stages[0]}
            lines += ["", f"{name}, ms per example: " + ", ".join(f"{key} {value:.2f}" for key, value in means.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
