"""Predicts with a trained run on raw files. Inputs that are not given are masked.

    mmjax predict --workdir=runs/digits --image=a.png --audio=b.wav --text="what is the sum?"
    mmjax predict --workdir=runs/digits --input image=a.png --json

Each input of the model has a flag; `mmjax predict --workdir=RUN --help` lists them. One call predicts one example.
Tasks whose inputs are all missing are skipped. A contrastive task needs both of its inputs, and gives the cosine
similarity of their embeddings. Preprocessing is read from the workdir; the dataset is not needed. --json prints {task:
{"answer", "probability", "top": [{"answer", "probability"} of the five most probable classes]}}, only "answer" for
regression, and "similarity" for contrastive tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from mmjax.errors import UserError, nearest
from mmjax.files import to_json, user_path


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax predict`."""
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)
    absl_flags.DEFINE_multi_string("input", [], "NAME=VALUE, the same as --NAME=VALUE", flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of lines", flag_values=flags)


def define_dynamic_flags(flags: absl_flags.FlagValues, argv: list[str], show_help: bool) -> None:
    """Defines a flag for each input of the run in `--workdir`."""
    workdir = _workdir(argv)
    if workdir is None and show_help:
        return
    if workdir is None:
        # Raised here, because otherwise the flags of the inputs would be reported as unknown.
        raise UserError("--workdir", "is missing", "give --workdir=RUN, the workdir of `mmjax train`")
    from mmjax.runs.workdir import read_config

    for name in read_config(user_path(workdir))["model"]["encoders"]:
        # An input whose name is already a flag can be given with --input.
        if name not in flags:
            help_text = f"input {name!r} of the run, a file or a text; masked by default"
            # One call predicts one example, so a second value must not replace the first.
            absl_flags.DEFINE_string(name, None, help_text, flag_values=flags, allow_overwrite=False)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Prints the prediction of each task."""
    from mmjax.evaluation.predictor import (
        Predictor,
        check_predictions,
        input_warnings,
        make_reductions,
        process_inputs,
        read_raw,
    )
    from mmjax.runs.run import restore

    workdir = user_path(flags.workdir)
    experiment, state = restore(workdir)
    given = _given(flags, list(experiment.modalities))
    reductions = make_reductions(experiment.dataset)
    raws = read_raw(experiment.modalities, given, reductions)
    inputs = process_inputs(experiment.modalities, raws, given, experiment.packing, reductions)
    for warning in input_warnings(experiment.dataset.inputs, experiment.modalities, raws, reductions):
        print(f"warning: {warning}", file=sys.stderr)
    predictor = Predictor(experiment.objective, experiment.mesh, experiment.targets)
    predictions = predictor.run(state.eval_parameters, inputs)
    check_predictions(predictions, given, experiment.modalities)
    if flags.json:
        print(to_json(predictions))
        return
    width = max(map(len, predictions))
    for task, prediction in predictions.items():
        print(f"{task:{width}}  {_format(prediction)}")


def _format(prediction: Mapping[str, Any]) -> str:
    """Formats a prediction; for classes also its probability and the two runners-up."""
    if "similarity" in prediction:
        return f"cosine similarity {prediction['similarity']:.3f}"
    value = prediction["answer"]
    text = str(value)
    if isinstance(value, float):
        # Four digits, but all of those before the decimal point: 1.7e9 seconds are not a time.
        text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if "probability" in prediction:
        text += f"  with probability {prediction['probability']:.3f}"
    others = ", ".join(f"{other['answer']} {other['probability']:.3f}" for other in prediction.get("top", ())[1:3])
    return f"{text}  (then {others})" if others else text


def _workdir(argv: list[str]) -> str | None:
    """Returns the value of --workdir in `argv`, which may contain flags that are not defined yet."""
    known_flags = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "", flag_values=known_flags)
    try:
        known_flags(["mmjax", *argv], known_only=True)
    except absl_flags.Error:
        return None
    return known_flags.workdir


def _given(flags: absl_flags.FlagValues, names: list[str]) -> dict[str, str]:
    """Returns `{input: value}` of the inputs given by --NAME=VALUE or --input NAME=VALUE."""
    reserved = {"workdir", "input", "json"}
    values = {name: flags[name].value for name in names if name not in reserved}
    given = {name: value for name, value in values.items() if value is not None}
    for argument in flags.input:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"--input {argument}", "is not NAME=VALUE", f"write --input {names[0]}=VALUE")
        if name not in names:
            raise UserError(f"--input {argument}", f"the run has no input {name!r}", nearest(name, names))
        if name in given:
            raise UserError(f"--input {argument}", f"the input {name!r} is given twice", "give it once")
        given[name] = value
    return given
