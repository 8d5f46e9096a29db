"""Runs an experiment again and compares it with its recorded result; ends with 1 where they differ.

    mmjax reproduce experiments/01_digits
    mmjax reproduce experiments/01_digits --seeds=0 --workdir=runs/again
    mmjax reproduce experiments/01_digits --record
    mmjax reproduce experiments/02_avmnist --arms="matched, audio" --folds=jackson --jobs=4

An interrupted reproduction goes on where it was, and a seed that is trained already is not trained again. --record
writes what came out as the experiment's result: results.json, the tables in README.md, and plot.png.
"""

from __future__ import annotations

import pathlib

from absl import flags as absl_flags

from mmjax.errors import UserError

ARGUMENTS = "EXPERIMENT"


def define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_list("seeds", None, "which seeds; by default all of the experiment's", flag_values=flags)
    absl_flags.DEFINE_string(
        "workdir", None, "where the runs go, seed_0 and so on; by default runs/EXPERIMENT", flag_values=flags
    )
    absl_flags.DEFINE_multi_string("arms", None, "which arm; may be given again; by default all", flag_values=flags)
    absl_flags.DEFINE_list("folds", None, "which folds; by default all", flag_values=flags)
    absl_flags.DEFINE_integer(
        "jobs", 1, "runs at a time, each on its share of the cores", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_bool("record", False, "record the result instead of comparing with it", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    from mmjax.runs.reproduction import reproduce

    if len(arguments) != 1:
        problem = f"{len(arguments)} experiments are named" if arguments else "no experiment is named"
        raise UserError("mmjax reproduce", problem, "give one folder, like experiments/01_digits")
    folder = pathlib.Path(arguments[0])
    seeds = None if flags.seeds is None else [_number(word) for word in flags.seeds]
    workdir = pathlib.Path(flags.workdir or pathlib.Path("runs", folder.resolve().name))
    same = reproduce(folder, seeds, workdir, arms=flags.arms, folds=flags.folds, record=flags.record, jobs=flags.jobs)
    return 0 if same else 1


def _number(word: str) -> int:
    if not word.isdecimal():
        raise UserError("--seeds", f"{word!r} is not a seed", "give numbers, like --seeds=0,1")
    return int(word)
