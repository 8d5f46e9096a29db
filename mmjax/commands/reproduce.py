"""Reruns an experiment and compares it with its recorded result. Exits with 1 if they differ.

    mmjax reproduce experiments/01_digits
    mmjax reproduce experiments/01_digits --seeds=0 --workdir=runs/again
    mmjax reproduce experiments/01_digits --record
    mmjax reproduce experiments/02_avmnist --arms="matched, audio" --folds=jackson --jobs=4
    mmjax reproduce experiments/01_digits --quick
    mmjax reproduce --all --quick

The same command resumes an interrupted reproduction and skips seeds that are already trained. --record writes the new
result to the experiment's results.json, README.md (tables) and plot.png.

--quick trains a small form of every arm for two steps, with one seed on one fold, and compares no metrics: it checks
that all parts run, and that the record has the same entries. --all reproduces every experiment below experiments/, and
skips those whose data is not on this machine.
"""

from __future__ import annotations

import pathlib

from absl import flags as absl_flags

from mmjax.errors import MissingData, UserError
from mmjax.files import user_path

ARGUMENTS = "[EXPERIMENT]"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax reproduce`."""
    absl_flags.DEFINE_list("seeds", None, "seeds to run; by default all", flag_values=flags)
    absl_flags.DEFINE_string("workdir", None, "folder of the runs; by default runs/EXPERIMENT", flag_values=flags)
    absl_flags.DEFINE_multi_string("arms", None, "arm to run; by default all", flag_values=flags)
    absl_flags.DEFINE_list("folds", None, "folds to run; by default all", flag_values=flags)
    absl_flags.DEFINE_integer(
        "jobs", 1, "number of parallel runs; the cores are divided between them", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_bool("quick", False, "check a small form of each arm, in minutes", flag_values=flags)
    absl_flags.DEFINE_bool("all", False, "reproduce every experiment below experiments/", flag_values=flags)
    absl_flags.DEFINE_bool("record", False, "record the new result instead of comparing it", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Reruns the experiment, or all. Returns 0 if the recorded results are reproduced, else 1."""
    if flags.quick and flags.record:
        raise UserError("--record", "the result of a small form is no record", "remove --quick or --record")
    if flags.all:
        return _run_all(flags, arguments)
    if len(arguments) != 1:
        problem = f"{len(arguments)} experiments are given" if arguments else "no experiment is given"
        raise UserError("mmjax reproduce", problem, "give one folder, like experiments/01_digits")
    folder = user_path(arguments[0])
    seeds = None if flags.seeds is None else [_seed(text) for text in flags.seeds]
    return 0 if _reproduce(folder, flags, seeds, _workdir(flags, folder.resolve().name)) else 1


def _run_all(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    from mmjax.runs.reproduction import find_experiments

    if arguments:
        raise UserError("--all", f"{arguments[0]} is given too", "remove --all or the experiment")
    for name in ("seeds", "arms", "folds", "record"):
        if flags[name].value:
            raise UserError(f"--{name}", "selects within one experiment", "give the experiment instead of --all")
    root = pathlib.Path("experiments")
    results = {}
    for folder in find_experiments(root):
        print(f"\n{folder}", flush=True)
        try:
            workdir = _workdir(flags, "") / folder.relative_to(root)
            results[folder] = "reproduced" if _reproduce(folder, flags, None, workdir) else "NOT reproduced"
        except MissingData as error:
            results[folder] = f"SKIPPED, its data is missing: {error}"
    print()
    for folder, result in results.items():
        print(f"{folder}: {result}")
    return 1 if "NOT reproduced" in results.values() else 0


def _workdir(flags: absl_flags.FlagValues, name: str) -> pathlib.Path:
    return user_path(flags.workdir or pathlib.Path("runs", "quick" if flags.quick else "", name))


def _reproduce(
    folder: pathlib.Path, flags: absl_flags.FlagValues, seeds: list[int] | None, workdir: pathlib.Path
) -> bool:
    from mmjax.runs.reproduction import reproduce

    options = {"arms": flags.arms, "folds": flags.folds, "record": flags.record, "quick": flags.quick}
    return reproduce(folder, seeds, workdir, jobs=flags.jobs, **options)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError("--seeds", f"{text!r} is not a seed", "give integers, like --seeds=0,1")
    return int(text)
