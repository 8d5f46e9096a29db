"""Steps with non-finite gradients: when a run fails, its messages and rollbacks; non-finite numbers in files."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mmjax.__main__ import main
from mmjax.errors import RunError
from mmjax.evaluation.predictor import Predictor
from mmjax.files import to_json
from mmjax.sharding import MeshConfig, make_mesh, replicated
from mmjax.tasks.metrics import Ratio
from mmjax.training.checkpoint import CheckpointConfig, Checkpoints
from mmjax.training.hooks.log import LogConfig, LogHook
from mmjax.training.hooks.skipped_steps import SkippedStepsHook
from mmjax.training.loop import Hook, Loop
from mmjax.training.state import TrainState, parameters_finite


def state(step: int, data_step: int | None = None) -> TrainState:
    data_step = step if data_step is None else data_step
    return TrainState({"w": jnp.full((2,), float(step))}, {}, {}, jnp.int32(step), jnp.int32(data_step), {})


class Saved:
    """Checkpoints kept in a dict."""

    def __init__(self, steps):
        self.states = {step: state(step) for step in steps}

    @property
    def steps(self):
        return sorted(self.states)

    def wait(self):
        pass

    def restore(self, step, abstract):
        return self.states[step]


def run(bad, steps=60, saved=(), every=None, poisoned=(), **options):
    """Runs a loop whose step is skipped at the data steps `bad`, and on parameters of the updates `poisoned`."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    whole = replicated(mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state(0))
    checkpoints, console = Saved(saved), Console(file=io.StringIO(), width=300)

    class Save(Hook):
        def after_step(self, loop):
            if every and loop.step % every == 0:
                checkpoints.states[loop.step] = loop.state

    def step(current, batch):
        if int(current.data_step) in bad or int(current.step) in poisoned:
            return dataclasses.replace(current, data_step=current.data_step + 1)
        return state(int(current.step) + 1, int(current.data_step) + 1)

    options = {"max_skipped": 5, "rollback": False, **options}
    ids_at = lambda step: list(range(10 * step, 10 * step + 10))  # noqa: E731
    hook = SkippedStepsHook(checkpoints=checkpoints, abstract=abstract, ids_at=ids_at, console=console, **options)
    loop = Loop(state(0), steps, [hook, Save()])
    try:
        return loop.run(step, iter(range(1000))), loop, console.file.getvalue()
    except RunError as error:
        return error, loop, console.file.getvalue()


@pytest.mark.parametrize("first", [0, 7, 55])
def test_a_run_ends_after_the_steps_in_a_row_and_names_the_first_batch(first):
    error, loop, _ = run(range(first, 60))
    assert f"5 steps in a row were skipped, because their gradients were not finite, first at step {first + 1}" in str(
        error
    )
    assert f"with the examples {10 * first}, {10 * first + 1}" in str(error) and ", …;" in str(error)
    # Detected two steps later, because steps are dispatched asynchronously, or at the end of the run.
    assert loop.step == min(first + 7, 60)


def test_shorter_streaks_are_survived_and_more_than_half_of_the_steps_is_a_failure():
    final, _, _ = run({1, 2, 3, 4, 10, 20, 21, 56, 57, 58, 59})
    assert int(final.step) == 49
    error, loop, _ = run({step for step in range(60) if step % 5})
    assert loop.step == 60 and "48 of 60 steps were skipped" in str(error) and "first at step 2 with" in str(error)
    error, _, _ = run({2, 3}, steps=3, max_skipped=20)
    assert not isinstance(error, RunError)
    error, _, _ = run({1, 2}, steps=3, max_skipped=20)
    assert "2 of 3 steps were skipped" in str(error)


def test_rollback_continues_from_the_newest_checkpoint_before_the_streak_after_its_data():
    final, loop, printed = run(range(23, 30), every=10, rollback=True)
    # Detected after step 30, with batches 23 to 29 consumed: from update 20, 30 more updates follow.
    assert (int(final.step), int(final.data_step), loop.step) == (50, 60, 60)
    assert (
        "step 30: 5 steps in a row were skipped" in printed and "continuing from the checkpoint of step 20" in printed
    )


def test_rollback_goes_further_back_if_the_checkpoint_is_the_cause():
    # Parameters of update 20 fail on any data, so their checkpoint is tried once.
    final, _, printed = run((), every=10, poisoned={20}, rollback=True, steps=46)
    assert printed.count("continuing from the checkpoint of step 20") == 1
    assert printed.count("continuing from the checkpoint of step 10") == 1
    # Checkpoints saved within a streak are never restored.
    assert "checkpoint of step 30" not in printed
    assert int(final.data_step) == 46
    # Also if parameters are saved again after each rollback. From 19, one update leads to checkpoint 35.
    _, _, printed = run((), every=1, poisoned={20, 21}, rollback=True, steps=40)
    targets = [int(step) for step in re.findall(r"continuing from the checkpoint of step (\d+)", printed)]
    assert targets == [20, 19, 35]
    error, _, _ = run((), every=10, poisoned={10, 20}, rollback=True)
    assert "train.rollback found no checkpoint" in str(error)


def test_the_progress_line_says_that_steps_are_skipped():
    console = Console(file=io.StringIO(), width=200)
    hook = LogHook(LogConfig(every=1), None, console, lambda step: 0.1, 4)
    loop = Loop(
        dataclasses.replace(state(1), window={"optimizer/skipped": Ratio(jnp.float32(3), jnp.float32(4))}), 2, []
    )
    hook.start(loop)
    loop.step = 2
    hook.after_step(loop)
    hook.finish(loop)
    assert "75% of the last steps skipped (gradient not finite)" in console.file.getvalue()


@pytest.mark.parametrize(
    ("mode", "keep", "scores", "best"),
    [
        ("min", 1, [math.nan, 1.0, 0.5, 0.7], 3),
        ("max", 1, [0.1, math.nan, 0.9, 0.3], 3),
        ("min", 1, [0.1, 0.5, 0.4, math.nan], 1),
        ("max", 1, [0.9, math.nan, 0.4, 0.5], 1),
        ("max", 2, [0.9, 0.5, math.nan, 0.4, 0.5], 1),
        ("max", 1, [0.2, math.inf, 0.1], 1),
        ("min", 2, [math.nan, math.nan, -math.inf], None),
    ],
)
def test_a_metric_that_is_not_finite_is_never_best(tmp_path, mode, keep, scores, best):
    config = CheckpointConfig(every=1, keep=keep, best="m", mode=mode)
    checkpoints = Checkpoints(tmp_path, config)
    for step, score in enumerate(scores, 1):
        checkpoints.save(step, state(step), {"m": score})
        checkpoints.wait()
    checkpoints.close()
    again = Checkpoints(tmp_path, config, read_only=True)
    assert again.best() == best
    assert set(range(len(scores) - keep + 1, len(scores) + 1)) | ({best} if best else set()) <= set(again.steps)
    again.close()
    for path in tmp_path.rglob("*"):
        if path.is_file() and "metrics" in str(path):
            assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_json_has_null_where_a_number_is_not_finite():
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "NaN", True, None, 3)}]}
    assert json.loads(to_json(value)) == {"a": None, "b": [1.5, None, {"c": [None, "NaN", True, None, 3]}]}


def test_a_prediction_that_is_not_finite_fails():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    task = types.SimpleNamespace(
        weights=lambda batch: batch.ids >= 0, predictions=lambda features: [{"answer": float(x)} for x in features]
    )
    objective = types.SimpleNamespace(
        model=lambda parameters: types.SimpleNamespace(tasks={"y": task}),
        task_weights={"y": None},
        features=lambda parameters, batch, train: {"y": jnp.log(parameters) * jnp.ones(batch.size)},
    )
    predictor = Predictor(objective, mesh, {})
    assert predictor.run(jnp.float32(1), {}) == {"y": {"answer": 0.0}}
    for parameters in (-1.0, 0.0):
        with pytest.raises(RunError, match="the model's output for the task 'y' is not finite"):
            predictor.run(jnp.float32(parameters), {})


def test_parameters_are_finite_or_not():
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    tree = {"a": np.ones(3, np.float32), "b": {"c": np.zeros((2, 2), np.float32)}}
    assert parameters_finite(tree, mesh)
    tree["b"]["c"][1, 0] = np.inf
    assert not parameters_finite(tree, mesh)


def test_a_run_error_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def fail(*_):
        raise RunError("the run failed")

    monkeypatch.setattr("mmjax.commands.doctor.run", fail)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "mmjax: error: the run failed\n"
