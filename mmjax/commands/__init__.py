"""Table of the commands. Each command is a module in this package with

    a docstring                 help text of `mmjax NAME --help`, with examples
    ARGUMENTS = "EXPERIMENT"    optional: positional arguments for the usage line; without it, the command takes none
    define_flags(flags)         defines the command's flags in `flags`, an absl `FlagValues` of its own
    define_dynamic_flags(flags, argv, show_help)
                                optional: defines flags that depend on the given ones, such as --workdir=…
    run(flags, arguments)       runs the command; returns an exit code, or None for 0

The table contains the summaries for `mmjax --help`, so that listing the commands imports none of them.
"""

from __future__ import annotations

COMMANDS = {
    "init": ("mmjax.commands.init", "copy a recipe into this folder, to edit it"),
    "train": ("mmjax.commands.train", "train a recipe, or resume it from the workdir's newest checkpoint"),
    "evaluate": ("mmjax.commands.evaluate", "evaluate a trained model, also with missing modalities"),
    "predict": ("mmjax.commands.predict", "predict with a trained model on raw files"),
    "plan": ("mmjax.commands.plan", "predict memory, step time and cost of a recipe on TPU or GPU clusters"),
    "prepare": ("mmjax.commands.prepare", "clean, check and shard a dataset"),
    "reproduce": ("mmjax.commands.reproduce", "rerun an experiment and compare it with its recorded result"),
    "doctor": ("mmjax.commands.doctor", "show versions, devices, host, disk and missing packages"),
}
