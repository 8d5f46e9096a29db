"""A run that is killed at any moment, and started again, ends with the same bits as one that nobody disturbed.

Real processes are ended by real signals, at steps and not at seconds: see `tests/killable.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mmjax.data.pipeline import fingerprint
from mmjax.experiment import Experiment
from mmjax.training.checkpoint import CheckpointConfig, Checkpoints
from tests import small_recipe
from tests.conftest import QUICK_FLAGS

TESTS = pathlib.Path(__file__).parent
ENDED_BY_KILL = -signal.SIGKILL
PATIENCE = 240
"""Seconds until a process counts as hanging; one takes about ten."""


@dataclasses.dataclass
class Runner:
    """Starts the command of one recipe in a workdir."""

    workdir: pathlib.Path
    environment: dict[str, str]

    def command(self, *program: str) -> list[str]:
        recipe = f"--config={TESTS / 'small_recipe.py'}"
        return [sys.executable, *program, "train", recipe, f"--workdir={self.workdir}"]

    def start(self, kill: str = "") -> subprocess.Popen:
        program = [str(TESTS / "killable.py")] if kill else ["-m", "mmjax"]
        environment = {**self.environment, "MMJAX_TEST_KILL": kill}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.command(*program), env=environment, cwd=TESTS.parent, **pipes)

    def run(self, kill: str = "") -> tuple[int, str]:
        """The exit status and everything that was printed."""
        with self.start(kill) as process:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                pytest.fail(f"{kill or 'the run'} hangs after {PATIENCE} s:\n{output}")
        return process.returncode, output

    def run_and_kill_at_row(self, step: int, checkpoint: int) -> tuple[int, str]:
        """Kills from outside, once metrics.jsonl has a row of `step` or of a later one, and the checkpoint is there.

        The run stands still before it deletes this checkpoint or ends.
        """
        path = self.workdir / "metrics.jsonl"
        # The rows of an earlier process are still there until this one has put its own file in their place.
        old = path.stat().st_ino if path.exists() else None
        with self.start(f"hold:{min(checkpoint + 15, 27)}") as process:
            end = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < end:
                new = path.exists() and path.stat().st_ino != old
                if new and self.last_row() >= step and checkpoint in self.checkpoints():
                    break
                time.sleep(0.005)
            process.kill()
            output, _ = process.communicate()
        return process.returncode, output

    def last_row(self) -> int:
        path = self.workdir / "metrics.jsonl"
        whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
        return json.loads(whole[-1])["step"] if whole else 0

    def checkpoints(self) -> list[int]:
        folder = self.workdir / "checkpoints"
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.exists() else []

    def rows(self) -> dict[tuple[int, str], dict[str, float]]:
        """{(step, split): values that are a matter of the data and not of the machine}, each there once."""
        rows = {}
        for line in (self.workdir / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            key = row["step"], row["split"]
            assert key not in rows, f"two rows of {key}"
            rows[key] = {name: value for name, value in row.items() if not name.startswith("perf/")}
        return rows

    def result(self) -> dict:
        return json.loads((self.workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def environment(digits_cache, tmp_path_factory) -> dict[str, str]:
    # One device, and what one process compiled the next one finds: most of their time would go there.
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": QUICK_FLAGS,
    }
    paths = {"MMJAX_CACHE": str(digits_cache), "PYTHONPATH": str(TESTS.parent)}
    return {**os.environ, **compiled, **paths, "COLUMNS": "500", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory) -> Runner:
    runner = Runner(tmp_path_factory.mktemp("undisturbed") / "run", environment)
    status, output = runner.run()
    assert status == 0, output
    assert "resumed" not in output
    assert runner.checkpoints()[-1] == 28
    return runner


@pytest.fixture
def disturbed(environment, tmp_path) -> Runner:
    return Runner(tmp_path / "run", environment)


def assert_same_end(found: Runner, truth: Runner) -> None:
    assert found.result()["parameters_hash"] == truth.result()["parameters_hash"]
    assert found.result()["validation"] == truth.result()["validation"]
    assert found.rows() == truth.rows()
    expected = [*((step, "train") for step in (5, 10, 15, 20, 25, 28)), *((s, "validation") for s in (10, 20, 28))]
    assert sorted(found.rows()) == sorted(expected)


def resumed_at(output: str) -> int | None:
    found = re.search(r"resumed at step (\d+)", output)
    return int(found[1]) if found else None


def test_a_run_that_was_killed_again_and_again_ends_like_one_that_was_not(undisturbed, disturbed):
    seed = random.SystemRandom().randrange(1000)
    draws = random.Random(seed)
    print(f"kills drawn with seed {seed}")

    early = draws.randint(1, 7)
    status, output = disturbed.run(f"step:{early}")
    assert status == ENDED_BY_KILL, output
    assert disturbed.checkpoints() == []

    status, output = disturbed.run("commit:8")
    assert status == ENDED_BY_KILL and resumed_at(output) is None, output
    assert disturbed.checkpoints() == [], "a checkpoint that was cut off counts"

    late = draws.choice([10, 15])
    status, output = disturbed.run_and_kill_at_row(late, checkpoint=8)
    assert status == ENDED_BY_KILL and resumed_at(output) is None, output
    assert 8 in disturbed.checkpoints() and 28 not in disturbed.checkpoints()
    with (disturbed.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "split": "tr')

    restored = disturbed.checkpoints()[-1]
    last = draws.randint(max(restored, disturbed.last_row()) + 1, 27)
    status, output = disturbed.run(f"term:{last}")
    assert resumed_at(output) == restored, output
    assert status == 1 and f"stopped at step {last} with a checkpoint; run the same command to resume" in output
    assert disturbed.checkpoints()[-1] == last

    status, output = disturbed.run()
    assert status == 0 and resumed_at(output) == last, output
    assert_same_end(disturbed, undisturbed)


def test_a_run_that_was_killed_after_its_last_checkpoint_only_evaluates(undisturbed, disturbed):
    shutil.copytree(undisturbed.workdir, disturbed.workdir)
    (disturbed.workdir / "result.json").unlink()
    with (disturbed.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 28, "spl')
    status, output = disturbed.run()
    assert status == 0 and resumed_at(output) == 28, output
    assert_same_end(disturbed, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_runs_that_are_killed_at_random_moments_end_like_one_that_was_not(undisturbed, disturbed, seed):
    draws = random.Random(seed)
    restored = 0
    for _ in range(6):
        upcoming = [step for step in (8, 16, 24, 28) if step > restored]
        kind = draws.choice(["step", "term", "begin", "commit", "row"] if upcoming[0] < 28 else ["step", "commit"])
        if restored == 27:
            break
        if kind in ("step", "term"):
            step = draws.randint(restored + 1, min(restored + 9, 27))
            status, output = disturbed.run(f"{kind}:{step}")
        elif kind == "row":
            status, output = disturbed.run_and_kill_at_row(upcoming[0] + draws.randint(0, 1), upcoming[0])
        else:
            status, output = disturbed.run(f"{kind}:{upcoming[0]}")
        print(f"{kind}, from {restored} on: checkpoints {disturbed.checkpoints()}")
        assert status == (1 if kind == "term" else ENDED_BY_KILL), output
        assert (resumed_at(output) or 0) == restored, output
        restored = max(disturbed.checkpoints(), default=0)
    status, output = disturbed.run()
    assert status == 0 and (resumed_at(output) or 0) == restored, output
    assert_same_end(disturbed, undisturbed)


def trained(experiment: Experiment, step, state, count: int) -> tuple[object, list[str], list[float]]:
    """The state after `count` steps, the fingerprints of their batches, and their losses."""
    prints, losses = [], []
    with contextlib.closing(experiment.train_batches(int(state.data_step))) as batches:
        for _ in range(count):
            batch = next(batches)
            prints.append(fingerprint(jax.device_get(batch)))
            state = step(state, batch)
            losses.append(jax.device_get(state.window)["loss"].compute())
    return state, prints, losses


def test_a_run_goes_on_with_eight_devices_where_one_stopped_and_back(digits_cache, tmp_path):
    recipe = small_recipe.get_config()
    recipe.data["cache"] = str(digits_cache)
    recipe.log.every = 1
    one = Experiment(recipe, jax.devices()[:1])
    with recipe.unlocked():
        recipe.mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    eight = Experiment(recipe)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=10))

    def moved(state, experiment):
        checkpoints.save(int(state.data_step), state)
        checkpoints.wait()
        return checkpoints.restore(int(state.data_step), experiment.abstract_state)

    with jax.default_matmul_precision("highest"):
        step_of_one, step_of_eight = one.compile_step(), eight.compile_step()
        start, _, _ = trained(one, step_of_one, one.init_state(), 3)
        on_eight = moved(start, eight)
        assert len(on_eight.step.sharding.device_set) == 8
        on_eight, prints, losses = trained(eight, step_of_eight, on_eight, 4)
        after = moved(on_eight, one)
        assert len(after.step.sharding.device_set) == 1
        _, prints_after, losses_after = trained(one, step_of_one, after, 3)
        _, expected_prints, expected = trained(one, step_of_one, checkpoints.restore(3, one.abstract_state), 7)
    checkpoints.close()
    assert prints + prints_after == expected_prints
    np.testing.assert_allclose(losses + losses_after, expected, rtol=1e-5)
