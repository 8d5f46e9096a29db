"""Evaluates a trained run with all inputs, with some masked, or with every subset of the inputs.

    mmjax evaluate --workdir=runs/digits
    mmjax evaluate --workdir=runs/digits --split=accents --without=audio
    mmjax evaluate --workdir=runs/digits --subsets --json
    mmjax evaluate --workdir=runs/mine --data=prepared/other

The data must be the one that the run was trained on, wherever it lies; --data gives other data of the same schema.

--json prints {"step", "without", SPLIT: {metric: value}}. With --subsets it adds "subsets" and "ceilings" (upper bounds
of accuracy), as in result.json.
"""

from __future__ import annotations

from absl import flags as absl_flags

from mmjax.errors import UserError
from mmjax.files import to_json, user_path


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax evaluate`."""
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)
    absl_flags.DEFINE_list("split", None, "splits; by default evaluate.splits of the recipe", flag_values=flags)
    absl_flags.DEFINE_string("data", None, "prepared data to evaluate on instead of the run's own", flag_values=flags)
    absl_flags.DEFINE_list("without", [], "inputs to mask, like audio,image", flag_values=flags)
    absl_flags.DEFINE_bool("subsets", False, "evaluate every subset of the inputs", flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of tables", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Evaluates the run and prints its metrics."""
    from rich.console import Console

    from mmjax.runs.run import evaluate

    if flags.subsets and flags.without:
        raise UserError("--without", "cannot be combined with --subsets", "give one of the two")
    if flags.split == []:
        raise UserError("--split", "is empty", "remove the flag, or give a split like test")
    result = evaluate(
        user_path(flags.workdir),
        flags.split,
        data=flags.data,
        without=flags.without,
        all_subsets=flags.subsets,
        console=Console(quiet=flags.json, highlight=False),
    )
    if flags.json:
        print(to_json(result))
