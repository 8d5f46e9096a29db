"""The best checkpoint is kept beside the newest ones, also across a resume, and evaluation reads it."""

import json

import pytest

from mmjax.errors import UserError
from mmjax.runs import run as runs
from tests import small_recipe


def recipe(steps, **evaluate):
    config = small_recipe.get_config()
    config.train.update(steps=steps, accumulate=1, ema=None)
    # The learning rate is so high that the loss soon grows: the best checkpoint is not the last.
    config.schedule = {"kind": "optax.linear_schedule", "init_value": 1e-2, "end_value": 3.0, "transition_steps": 30}
    config.optimizer = {"name": "sgd"}
    config.checkpoint = {"every": 8, "keep": 1, "best": "digit/loss", "mode": "min"}
    config.evaluate = {"every": 4, "splits": ["validation"], "subsets": False, "batch_size": 128, **evaluate}
    return config


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["digit/loss"] for row in rows if row["split"] == "validation"}


def test_the_best_checkpoint_stays_and_is_read(monkeypatch, digits_cache, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    workdir = tmp_path / "run"
    for steps in (24, 40):
        runs.train(recipe(steps, checkpoint="best"), workdir)
    saved = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
    measured = losses(workdir)
    best = min((step for step in measured if step % 8 == 0), key=measured.get)
    assert best < 24 and saved == {best, 40}
    recorded = json.loads((workdir / "result.json").read_text())
    assert recorded["steps"] == 40 and recorded["evaluated_step"] == best
    assert recorded["validation"]["digit/loss"] == pytest.approx(measured[best], rel=1e-5)
    result = runs.evaluate(workdir, ["validation"])
    assert result["step"] == best
    assert result["validation"]["digit/loss"] == pytest.approx(measured[best], rel=1e-5)


def test_a_checkpoint_without_its_metric_is_refused(monkeypatch, digits_cache, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    with pytest.raises(UserError, match="checkpoint.every: 8 is not a multiple of evaluate.every = 5"):
        runs.train(recipe(24, every=5), tmp_path / "run")
    assert not (tmp_path / "run").exists()
