"""Reruns an experiment and compares it with its recorded result. Exits with 1 if they differ.

    mmjax reproduce experiments/01_digits
    mmjax reproduce experiments/01_digits --seeds=0 --workdir=runs/again
    mmjax reproduce experiments/01_digits --record
    mmjax reproduce experiments/02_avmnist --arms="matched, audio" --folds=jackson --jobs=4

The same command resumes an interrupted reproduction and skips seeds that are already trained. --record writes the new
result to the experiment's results.json, README.md (tables) and plot.png.
"""

from __future__ import annotations

import pathlib

from absl import flags as absl_flags

from mmjax.errors import UserError
from mmjax.files import user_path

ARGUMENTS = "EXPERIMENT"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax reproduce`."""
    absl_flags.DEFINE_list("seeds", None, "seeds to run; by default all", flag_values=flags)
    absl_flags.DEFINE_string("workdir", None, "folder of the runs; by default runs/EXPERIMENT", flag_values=flags)
    absl_flags.DEFINE_multi_string("arms", None, "arm to run; by default all", flag_values=flags)
    absl_flags.DEFINE_list("folds", None, "folds to run; by default all", flag_values=flags)
    absl_flags.DEFINE_integer("jobs", 1, "parallel runs, which share out the cores", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_bool("record", False, "record the new result instead of comparing it", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Reruns the experiment. Returns 0 if its recorded result is reproduced, else 1."""
    from mmjax.runs.reproduction import reproduce

    if len(arguments) != 1:
        problem = f"{len(arguments)} experiments are given" if arguments else "no experiment is given"
        raise UserError("mmjax reproduce", problem, "give one folder, like experiments/01_digits")
    folder = user_path(arguments[0])
    seeds = None if flags.seeds is None else [_seed(text) for text in flags.seeds]
    workdir = user_path(flags.workdir or pathlib.Path("runs", folder.resolve().name))
    options = {"arms": flags.arms, "folds": flags.folds, "record": flags.record, "jobs": flags.jobs}
    return 0 if reproduce(folder, seeds, workdir, **options) else 1


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError("--seeds", f"{text!r} is not a seed", "give integers, like --seeds=0,1")
    return int(text)
