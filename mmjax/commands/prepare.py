"""Prepares the dataset of a recipe, unless it is there, and shows what there is.

mmjax prepare --config=configs/digits.py

Training does it too; this is for doing it once, before many runs or on a machine without an accelerator. Only the
section `data` of the recipe matters.
"""

from __future__ import annotations

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from rich.console import Console

    from mmjax.config import build
    from mmjax.experiment import ExperimentConfig, make_dataset, plain
    from mmjax.reporting.overview import print_facts

    config = build(ExperimentConfig, plain(flags.config), "")
    shared, dataset = make_dataset(config.data)
    facts = {"folder": str(dataset.prepare())}
    for split in dataset.splits:
        facts[split] = f"{len(dataset.source(split)):,} examples"
    facts["inputs"] = ", ".join(f"{name} ({kind})" for name, kind in dataset.inputs.items())
    facts["targets"] = ", ".join(dataset.targets)
    # Not every dataset has one: what others made is read where it lies.
    if checksum := getattr(dataset, "checksum", None):
        facts["checksum"] = f"sha256 {checksum}"
    print_facts(Console(soft_wrap=True, highlight=False), f"the dataset {shared.name}", facts)
