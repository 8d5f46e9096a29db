"""Answers of a trained run for raw files; what is not given is absent.

    mmjax predict --workdir=runs/digits --image=a.png --audio=b.wav --text="what is the sum?"
    mmjax predict --workdir=runs/digits --input image=a.png --json

There is a flag for each input of the run's model; `mmjax predict --workdir=RUN --help` shows them. A task without any
of its inputs gives no answer. Preprocessing is that of the run, from its workdir; its dataset is not needed. --json
prints {task: {"answer", "probability", "top": [{"answer", "probability"}, the five most probable]}}, and "answer"
alone for tasks without classes.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from mmjax.errors import UserError, nearest


def define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("workdir", None, "folder of the run", flag_values=flags, required=True)
    absl_flags.DEFINE_multi_string(
        "input", [], "NAME=VALUE, the same as --NAME=VALUE; may be given several times", flag_values=flags
    )
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of lines", flag_values=flags)


def define_more_flags(flags: absl_flags.FlagValues, words: list[str], asks_help: bool) -> None:
    """Defines a flag for each input of the run that `--workdir` names, which the words are looked through for."""
    workdir = _workdir(words)
    if workdir is None and asks_help:
        return
    if workdir is None:
        # Now, since the flags of the inputs would be called unknown otherwise.
        raise UserError("--workdir", "is missing", "give --workdir=RUN, the workdir of `mmjax train`")
    from mmjax.runs.workdir import read_config

    for name in read_config(pathlib.Path(workdir))["model"]["encoders"]:
        # Under --input there is room for an input of any name.
        if name not in flags:
            help_text = f"the run's input {name!r}, a file or a sentence; absent by default"
            absl_flags.DEFINE_string(name, None, help_text, flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    from mmjax.evaluation.predictor import Predictor, check_predictions, read_inputs
    from mmjax.runs.run import restore

    workdir = pathlib.Path(flags.workdir)
    experiment, state = restore(workdir)
    given = _given(flags, list(experiment.modalities))
    inputs = read_inputs(experiment.modalities, given, experiment.packing)
    predictor = Predictor(experiment.objective, experiment.mesh, experiment.targets)
    answers = predictor.run(state.eval_parameters, inputs)
    check_predictions(answers, given, experiment.modalities)
    if flags.json:
        print(json.dumps(answers))
        return
    width = max(map(len, answers))
    for task, answer in answers.items():
        print(f"{task:{width}}  {_sentence(answer)}")


def _sentence(answer: Mapping[str, Any]) -> str:
    """An answer in words; tasks without classes have no probabilities."""
    words = f"{answer['answer']:.4g}" if isinstance(answer["answer"], float) else str(answer["answer"])
    if "probability" in answer:
        words += f"  with probability {answer['probability']:.3f}"
    others = ", ".join(f"{other['answer']} {other['probability']:.3f}" for other in answer.get("top", ())[1:3])
    return f"{words}  (then {others})" if others else words


def _workdir(words: list[str]) -> str | None:
    """The value of --workdir among words that hold flags which nobody has defined yet."""
    scan = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", None, "", flag_values=scan)
    try:
        scan(["mmjax", *words], known_only=True)
    except absl_flags.Error:
        return None
    return scan.workdir


def _given(flags: absl_flags.FlagValues, names: list[str]) -> dict[str, str]:
    """{name of an input: what was given for it}, by --NAME=VALUE or --input NAME=VALUE."""
    own = {"workdir", "input", "json"}
    values = {name: flags[name].value for name in names if name not in own}
    given = {name: value for name, value in values.items() if value is not None}
    for word in flags.input:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--input {word}", "is not NAME=VALUE", f"write --input {names[0]}=VALUE")
        if name not in names:
            raise UserError(f"--input {word}", f"the run has no input {name!r}", nearest(name, names))
        if name in given:
            raise UserError(f"--input {word}", f"the input {name!r} is given twice", "give one example")
        given[name] = value
    return given
