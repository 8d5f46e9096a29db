"""Train a recipe; the same command again goes on where the workdir's newest checkpoint is.

mmjax train --config=configs/digits.py --workdir=runs/digits --config.train.steps=500
"""

from __future__ import annotations

import pathlib

from absl import flags as absl_flags

from mmjax.commands import define_config


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from mmjax.runs import train

    train(flags["config"].value, pathlib.Path(flags["workdir"].value))
