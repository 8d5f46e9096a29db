"""Train a recipe; the same command again goes on where the workdir's newest checkpoint is.

mmjax train --config=configs/digits.py --workdir=runs/digits --config.train.steps=500

On several hosts, start the same command on each. TPU slices and Slurm steps find each other; elsewhere say who is who:

mmjax train --config=... --workdir=/shared/run --coordinator=10.0.0.1:1234 --process_count=2 --process_id=0
"""

from __future__ import annotations

import pathlib

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)
    absl_flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several processes", flag_values=flags)
    absl_flags.DEFINE_integer("process_count", None, "how many processes train together", flag_values=flags)
    absl_flags.DEFINE_integer("process_id", None, "which of them this is, from 0 on", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from mmjax.processes import initialize
    from mmjax.runs.run import train

    initialize(flags.coordinator, flags.process_count, flags.process_id)
    train(flags.config, pathlib.Path(flags.workdir))
