"""Train step: guard against non-finite gradients, counters, metric window; and the metrics log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from rich.console import Console

from mmjax.tasks.metrics import finalise
from mmjax.tokens import Input
from mmjax.training.hooks import log
from mmjax.training.hooks.early_stopping import EarlyStopping
from mmjax.training.loop import Loop
from mmjax.training.metrics_log import MetricsLog, read_rows
from tests.contracts import Case, Part, assert_identical, make_batch


@pytest.fixture(scope="module")
def case() -> Case:
    case = Case(Part("fusion", "concatenation"))
    case.trainer = dataclasses.replace(case.trainer, ema=0.9, log_every=3)
    return case


@pytest.fixture(scope="module")
def step(case):
    return jax.jit(case.trainer.step)


def numbered(case: Case, number: int):
    return dataclasses.replace(make_batch(case.specs, seed=number), step=np.int32(number))


def broken(batch):
    """The same batch with a NaN in a present example."""
    name, x = next((name, x) for name, x in batch.inputs.items() if x.values.dtype.kind == "f")
    values = x.values.copy()
    values[np.flatnonzero(x.present)[0]] = np.nan
    return dataclasses.replace(batch, inputs={**batch.inputs, name: Input(values, x.mask)})


def test_a_skipped_step_changes_the_counters_only(case, step):
    state = step(case.trainer.init(case.parameters, numbered(case, 0)), numbered(case, 0))
    after = step(state, broken(numbered(case, 1)))
    for part in ("parameters", "optimizer", "ema", "step"):
        assert_identical(getattr(after, part), getattr(state, part))
    assert (int(after.step), int(after.data_step)) == (1, 2)
    row, before = (finalise(jax.device_get(s.window)) for s in (after, state))
    assert row.pop("optimizer/skipped") == 0.5 and before.pop("optimizer/skipped") == 0.0
    assert row == before
    assert int(step(after, numbered(case, 2)).step) == 2


def test_the_average_follows_the_parameters(case, step):
    state = case.trainer.init(case.parameters, numbered(case, 0))
    assert_identical(state.ema, state.parameters)
    after = step(state, numbered(case, 0))
    # In the first step the decay is 1 / 10, whatever its cap.
    expected = jax.tree.map(lambda a, p: a + 0.9 * (p - a), state.ema, after.parameters)
    for found, truth in zip(jax.tree.leaves(after.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-7)


def test_the_window_holds_the_steps_since_the_last_row(case, step):
    state = case.trainer.init(case.parameters, numbered(case, 0))
    counted, weights = [], []
    for number in range(7):
        state = step(state, numbered(case, number))
        window = jax.device_get(state.window)
        counted.append(int(window["optimizer/skipped"].weight))
        weights.append(float(window["task/loss"].weight))
    # A row is written after every third step; the next step starts a new window.
    assert counted == [1, 2, 3, 1, 2, 3, 1]
    assert weights == pytest.approx([weights[0] * count for count in counted])


def test_a_run_that_had_stopped_early_makes_no_further_step_when_it_is_started_again():
    losses = [3.0, 2.0, 2.5, 2.4]
    history = [{"step": 10 * i, "split": "validation", "loss": loss} for i, loss in enumerate(losses, 1)]
    config = EarlyStopping.Config(metric="loss", patience=2, mode="min")
    for restored, stopped in ((40, True), (30, False)):
        loop = Loop(types.SimpleNamespace(data_step=restored), 100, [EarlyStopping(config, history)])
        steps = []
        with contextlib.suppress(StopIteration):
            loop.run(lambda state, batch, steps=steps: steps.append(batch), iter([]))
        assert (loop.stop_reason is not None) == stopped
        assert steps == []


def test_rows_after_the_restored_step_are_cut_off_and_a_torn_one_too(tmp_path):
    metrics = MetricsLog(tmp_path, 0)
    for number in (5, 10, 15):
        metrics.write(number, "train", {"loss": number / 10})
    metrics.write(10, "validation", {"loss": float("nan")})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    metrics = MetricsLog(tmp_path, 10)
    metrics.write(15, "train", {"loss": 7.0})
    metrics.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [
        (5, "train"), (10, "train"), (10, "validation"), (15, "train"),
    ]  # fmt: skip
    assert [row["loss"] for row in rows] == [0.5, 1.0, None, 7.0]
    assert read_rows(tmp_path, "validation") == [rows[2]]


def test_a_file_whose_last_row_is_torn_at_a_kept_step_loses_that_row_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "split": "train"}\n{"step": 8, "split": "train", "lo')
    MetricsLog(tmp_path, 8).close()
    assert read_rows(tmp_path) == [{"step": 5, "split": "train"}]


def test_a_row_has_the_rate_of_its_last_update_and_the_speed_since_the_row_before(case, step, monkeypatch):
    state, now = case.trainer.init(case.parameters, numbered(case, 0)), [100.0]
    monkeypatch.setattr(log, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    hook = log.LogHook(log.LogConfig(every=3), None, Console(quiet=True), lambda count: 10.0 + count, batch_size=6)
    loop = types.SimpleNamespace(step=0, steps=9, done=False, state=state, latest_metrics={})
    hook.start(loop)
    for number in range(6):
        # The update of step 1 is skipped.
        batch = numbered(case, number)
        loop.state = step(loop.state, broken(batch) if number == 1 else batch)
        loop.step, now[0] = number + 1, now[0] + 0.5
        hook.after_step(loop)
        if number < 2:
            assert not loop.latest_metrics
        if number in (2, 5):
            row = loop.latest_metrics["train"]
            assert row["optimizer/learning_rate"] == 10.0 + number - 1
            assert row["perf/step_seconds"] == pytest.approx(0.5)
            assert row["perf/examples_per_second"] == pytest.approx(12.0)
            assert row["optimizer/skipped"] == pytest.approx(1 / 3 if number == 2 else 0)
    hook.finish(loop)
