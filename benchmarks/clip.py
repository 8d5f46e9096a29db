"""Compares the CLIP ViT-B/32 training step of mmjax with those of PyTorch and big_vision, on this machine's CPU.

    python benchmarks/clip.py --torch=PYTHON --big_vision=PATH
    python benchmarks/clip.py --cores=1 --turns=2 --json=clip.json

Libraries to compare with; those that are not installed are skipped:

    python3 -m venv peer && peer/bin/pip install torch transformers       # then --torch=peer/bin/python
    git clone https://github.com/google-research/big_vision               # then --big_vision=big_vision
    pip install einops scipy                                              # for big_vision, in the environment of mmjax

`torch.compile` needs a C++ compiler. All contenders have the same model sizes, batch, softmax loss, gradient clipping
and AdamW, float32 parameters, and `--cores` threads. Each measurement runs in its own process, so that peak memory is
measured separately. Contenders alternate, so that other load affects all of them. mmjax runs as in `mmjax train`, with
huge pages, with scanned and with unrolled layers (`scan=False`); the other libraries run with and without huge pages.

Prints wall time and CPU time per step in milliseconds (on a busy machine use CPU time and --cores=1), peak memory, and
ratios to mmjax: above 1, mmjax is better.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from contender import SIZES, Settings  # noqa: E402
from machine import cores, host, percentile  # noqa: E402

from mmjax.errors import UserError, nearest  # noqa: E402
from mmjax.host.huge_pages import TUNABLE  # noqa: E402

OURS = "mmjax"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A program in `benchmarks/peers`, its mode, and whether it runs with huge pages."""

    program: str
    mode: str = ""
    huge_pages: bool = False


CONTENDERS = {
    # Enables huge pages itself.
    OURS: Contender("mmjax_clip"),
    "mmjax_unrolled": Contender("mmjax_clip", "unrolled"),
    "torch": Contender("torch_clip"),
    "torch_huge": Contender("torch_clip", huge_pages=True),
    "torch_compiled": Contender("torch_clip", "compiled"),
    "torch_compiled_huge": Contender("torch_clip", "compiled", huge_pages=True),
    "big_vision": Contender("big_vision_clip"),
    "big_vision_huge": Contender("big_vision_clip", huge_pages=True),
}


def define_flags(flags: absl_flags.FlagValues) -> None:
    everyone = ",".join(CONTENDERS)
    string, integer = absl_flags.DEFINE_string, absl_flags.DEFINE_integer
    string("torch", sys.executable, "Python interpreter with torch and transformers", flag_values=flags)
    string("big_vision", "", "folder with the source of big_vision", flag_values=flags)
    string("contenders", everyone, "comma-separated contenders", flag_values=flags)
    string("precisions", "float32,bfloat16", "comma-separated matmul precisions", flag_values=flags)
    string("json", "", "file for all results", flag_values=flags)
    absl_flags.DEFINE_enum("size", "b32", list(SIZES), "model size; tiny is for tests", flag_values=flags)
    integer("batch_size", 32, "pairs per batch", lower_bound=2, flag_values=flags)
    integer("cores", cores(), "cores and threads per process", lower_bound=1, upper_bound=cores(), flag_values=flags)
    integer("turns", 3, "processes of each contender", lower_bound=1, flag_values=flags)
    integer("steps", 5, "timed steps of each process", lower_bound=1, flag_values=flags)
    integer("warmup", 2, "untimed steps before these", lower_bound=1, flag_values=flags)


def main(arguments: list[str]) -> int:
    flags = absl_flags.FlagValues()
    define_flags(flags)
    try:
        if {"--help", "-h"} & set(arguments):
            print(f"{__doc__}\n{flags.get_help()}")
            return 0
        flags(arguments)
        names, precisions = flags.contenders.split(","), flags.precisions.split(",")
        for flag, given, known in (("--contenders", names, CONTENDERS), ("--precisions", precisions, PRECISIONS)):
            for name in given:
                if name not in known:
                    raise UserError(flag, f"unknown name {name!r}", nearest(name, known))
    except (UserError, absl_flags.Error) as error:
        print(f"clip.py: error: {error}", file=sys.stderr)
        return 2
    found = {"host": host(), **{name: flags[name].value for name in ("size", "batch_size", "cores", "turns", "steps")}}
    found["runs"] = []
    try:
        for run in take_turns(flags, names, precisions):
            found["runs"].append(run)
            if flags.json:
                _write(pathlib.Path(flags.json), json.dumps(found, indent=2) + "\n")
    except KeyboardInterrupt:
        print("clip.py: interrupted; the results so far follow", file=sys.stderr)
    print(table(found))
    return 0


PRECISIONS = ("float32", "bfloat16")


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def take_turns(flags: absl_flags.FlagValues, names: list[str], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Yields measurements, {"contender", "precision", "turn"} and the output of the process, "missing" or "failed"."""
    skipped: set[tuple[str, str]] = set()
    for turn in range(flags.turns):
        for precision in precisions:
            # Each turn starts with another contender.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if (name, precision) in skipped:
                    continue
                settings = Settings(
                    size=flags.size,
                    batch_size=flags.batch_size,
                    precision=precision,
                    cores=flags.cores,
                    warmup=flags.warmup,
                    steps=flags.steps,
                    mode=CONTENDERS[name].mode,
                    path=os.path.abspath(flags.big_vision) if flags.big_vision else "",
                    count=turn == 0,
                )
                run = {"contender": name, "precision": precision, "turn": turn}
                run |= in_a_process(CONTENDERS[name], settings, flags.torch)
                problem = run.get("missing") or run.get("failed")
                if problem:
                    skipped.add((name, precision))
                outcome = problem or f"{statistics.median(run['wall']) * 1e3:,.0f} ms per step"
                print(f"turn {turn + 1} of {flags.turns}, {precision}, {name}: {outcome}", file=sys.stderr, flush=True)
                yield run


def in_a_process(contender: Contender, settings: Settings, torch: str) -> dict[str, Any]:
    """Runs a contender in a process. Returns its output, or {"failed": last line of stderr}."""
    python = torch if contender.program == "torch_clip" else sys.executable
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"OMP_NUM_THREADS": str(settings.cores), "TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
    if contender.huge_pages:
        environment["GLIBC_TUNABLES"] = f"{TUNABLE}=1"
    program = ROOT / "benchmarks" / "peers" / f"{contender.program}.py"
    command = [python, str(program), json.dumps(dataclasses.asdict(settings))]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    except OSError as error:
        return {"failed": str(error)}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs: list[dict[str, Any]], name: str, precision: str) -> dict[str, Any] | None:
    """Summarises one contender, with ratios to mmjax within each turn. Returns None if it did not run."""
    mine, ours = (
        {run["turn"]: run for run in runs if (run["contender"], run["precision"]) == (who, precision) and "wall" in run}
        for who in (name, OURS)
    )
    if not mine:
        return None
    wall = [seconds for run in mine.values() for seconds in run["wall"]]
    row: dict[str, Any] = {
        "wall_ms": statistics.median(wall) * 1e3,
        "wall_ms_p90": percentile(wall, 0.9) * 1e3,
        "cpu_ms": statistics.median(seconds for run in mine.values() for seconds in run["cpu"]) * 1e3,
        "peak_bytes": max(run["peak_bytes"] for run in mine.values()),
    }
    measures = {
        "wall": lambda run: statistics.median(run["wall"]),
        "cpu": lambda run: statistics.median(run["cpu"]),
        "peak": lambda run: run["peak_bytes"],
    }
    for measure, of in measures.items():
        ratios = sorted(of(mine[turn]) / of(ours[turn]) for turn in mine if turn in ours)
        row[f"{measure}_ratio"] = (statistics.median(ratios), ratios[0], ratios[-1]) if ratios else None
    return row


def table(found: dict[str, Any]) -> str:
    """Formats the results as a table."""
    runs = found["runs"]
    lines = [f"{found['host']}, {found['cores']} used; batch {found['batch_size']}, {found['turns']} turns"]
    lines += sorted({run["versions"] for run in runs if "versions" in run})
    head = ("precision", "contender", "ms", "p90", "ratio", "core ms", "ratio", "GiB", "ratio")
    form = "{:9} {:20} {:>7} {:>7} {:>18} {:>8} {:>18} {:>6} {:>18}"
    lines += ["", form.format(*head)]
    for precision in dict.fromkeys(run["precision"] for run in runs):
        for name in CONTENDERS:
            row = summary(runs, name, precision)
            if row is None:
                continue
            wall, cpu, peak = (_spread(row[f"{measure}_ratio"]) for measure in ("wall", "cpu", "peak"))
            times = (f"{row['wall_ms']:,.0f}", f"{row['wall_ms_p90']:,.0f}", wall, f"{row['cpu_ms']:,.0f}", cpu)
            lines.append(form.format(precision, name, *times, f"{row['peak_bytes'] / 2**30:.2f}", peak))
    lines += ["", "contender           TFLOPs per step  parameters"]
    for run in runs:
        if "flops" in run and run["precision"] == runs[0]["precision"]:
            lines.append(f"{run['contender']:20}  {run['flops'] / 1e12:13.4f}  {run['parameters']:,}")
    for problem in ("missing", "failed"):
        problems = {(CONTENDERS[run["contender"]].program, run[problem]): run for run in runs if problem in run}
        lines += [f"{run['contender']} {problem}: {run[problem]}" for run in problems.values()]
    return "\n".join(lines)


def _spread(ratios: tuple[float, float, float] | None) -> str:
    return "–" if ratios is None else f"{ratios[0]:.2f} ({ratios[1]:.2f}–{ratios[2]:.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
