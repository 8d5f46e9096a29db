"""The commands, one small file each, and their table.

A command is a module with

    a docstring                 shown by `mmjax NAME --help`, with an example
    ARGUMENTS = "EXPERIMENT"    only where it takes words that are no flags, for the usage line
    define_flags(flags)         defines its flags in `flags`, an absl `FlagValues` of its own
    define_more_flags(flags, words, asks_help)
                                only where further flags depend on the words that are given, such as --workdir=…
    run(flags, arguments)       does the work; returns None or an exit code

The table has the one line that `mmjax --help` prints, so that listing the commands imports none of them.
"""

from __future__ import annotations

COMMANDS = {
    "train": ("mmjax.commands.train", "train a recipe; goes on where the workdir has a checkpoint"),
    "evaluate": ("mmjax.commands.evaluate", "metrics of a trained model, also without some modalities"),
    "predict": ("mmjax.commands.predict", "answers for raw files"),
    "plan": ("mmjax.commands.plan", "memory, time and cost of a recipe on a TPU pod that you do not have"),
    "prepare": ("mmjax.commands.prepare", "clean, check and shard a dataset"),
    "reproduce": ("mmjax.commands.reproduce", "run an experiment again and compare with its recorded result"),
    "doctor": ("mmjax.commands.doctor", "what is installed, which devices there are, what is missing"),
}
