"""Trains and evaluates a recipe, resuming from the workdir's newest checkpoint.

    mmjax train --config=configs/digits.py --workdir=runs/digits --config.train.steps=500

On several hosts, start the same command on each. On TPU slices and in Slurm steps, the processes find each other.
Elsewhere give the address of process 0, the number of processes and the index of each:

    mmjax train --config=... --workdir=/shared/run --coordinator=10.0.0.1:1234 --process_count=2 --process_id=0
"""

from __future__ import annotations

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.files import user_path


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax train`."""
    define_config(flags)
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)
    absl_flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, in multi-process runs", flag_values=flags)
    absl_flags.DEFINE_integer("process_count", None, "number of processes", flag_values=flags)
    absl_flags.DEFINE_integer("process_id", None, "index of this process, from 0", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Connects to the other processes, if any, and trains the recipe."""
    from mmjax.host.process_age import process_age
    from mmjax.processes import initialize
    from mmjax.runs.run import train

    initialize(flags.coordinator, flags.process_count, flags.process_id)
    train(flags.config, user_path(flags.workdir), earlier=process_age())
