"""A run that is killed and resumed ends with the same bits as an uninterrupted run.

Real processes receive real signals, at exact steps rather than times: see `tests/killable.py`.
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
    seconds: float = 0.0
    """Seconds from the start to the end of each process, added up."""

    def command(self, *program: str) -> list[str]:
        recipe = f"--config={TESTS / 'small_recipe.py'}"
        return [sys.executable, *program, "train", recipe, f"--workdir={self.workdir}"]

    def start(self, kill: str = "", *flags: str) -> subprocess.Popen:
        program = [str(TESTS / "killable.py")] if kill else ["-m", "mmjax"]
        environment = {**self.environment, "MMJAX_TEST_KILL": kill}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*self.command(*program), *flags], env=environment, cwd=TESTS.parent, **pipes)

    def run(self, kill: str = "", *flags: str) -> tuple[int, str]:
        """Exit status and output."""
        began = time.monotonic()
        with self.start(kill, *flags) as process:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                pytest.fail(f"{kill or 'the run'} hangs after {PATIENCE} s:\n{output}")
        self.seconds += time.monotonic() - began
        return process.returncode, output

    def run_and_kill_at_row(self, step: int, checkpoint: int) -> tuple[int, str]:
        """Kills from outside, once metrics.jsonl has a row of `step` or later, and the checkpoint exists.

        The run stops before it deletes this checkpoint or ends.
        """
        path = self.workdir / "metrics.jsonl"
        # Rows of an earlier process remain until this one replaces the file.
        old = path.stat().st_ino if path.exists() else None
        began = time.monotonic()
        with self.start(f"hold:{min(checkpoint + 15, 27)}") as process:
            end = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < end:
                new = path.exists() and path.stat().st_ino != old
                if new and self.last_row() >= step and checkpoint in self.checkpoints():
                    break
                time.sleep(0.005)
            process.kill()
            output, _ = process.communicate()
        self.seconds += time.monotonic() - began
        return process.returncode, output

    def last_row(self) -> int:
        path = self.workdir / "metrics.jsonl"
        whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
        return json.loads(whole[-1])["step"] if whole else 0

    def checkpoints(self) -> list[int]:
        folder = self.workdir / "checkpoints"
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.exists() else []

    def rows(self) -> dict[tuple[int, str], dict[str, float]]:
        """Metrics by (step, split), without throughput; no key may occur twice."""
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
    # Use one device and share compiled programs between processes: most of their time would be compilation.
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


def assert_ledger_adds_up(found: Runner, starts: int) -> None:
    """The parts are the whole time of all processes, but for the last second of a killed one and the exit of others."""
    ledger = found.result()["ledger"]
    assert ledger["starts"] == starts
    assert abs(sum(ledger["percent"].values()) - 100) < 0.1
    assert abs(sum(ledger["seconds"].values()) - ledger["total_seconds"]) < 0.1
    assert 0.7 * found.seconds < ledger["total_seconds"] < found.seconds + 0.1 * starts
    for part in ("compile", "step", "input", "evaluation", "checkpoint", "other"):
        assert ledger["seconds"][part] > 0, ledger


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
    assert disturbed.checkpoints() == [], "an unfinished checkpoint is listed"

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
    assert status == 3 and f"stopped at step {last} with a checkpoint; run the same command to resume" in output
    assert disturbed.checkpoints()[-1] == last

    status, output = disturbed.run()
    assert status == 0 and resumed_at(output) == last, output
    assert_same_end(disturbed, undisturbed)
    assert_ledger_adds_up(undisturbed, starts=1)
    assert_ledger_adds_up(disturbed, starts=5)
    spent, unspent = disturbed.result()["ledger"]["seconds"], undisturbed.result()["ledger"]["seconds"]
    assert spent["lost"] > 0 and spent["restore"] > 0 and unspent["lost"] == unspent["restore"] == 0
    assert re.search(r"wall time: .* s in 5 starts\n.*lost +[\d.]+ s +[\d.]+ %", output, re.S)


def test_a_run_that_was_killed_after_its_last_checkpoint_only_evaluates(undisturbed, disturbed):
    shutil.copytree(undisturbed.workdir, disturbed.workdir)
    (disturbed.workdir / "result.json").unlink()
    with (disturbed.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 28, "spl')
    status, output = disturbed.run()
    assert status == 0 and resumed_at(output) == 28, output
    assert_same_end(disturbed, undisturbed)


def test_signals_during_an_evaluation_and_by_ctrl_c_save_and_say_where_the_run_resumes(undisturbed, disturbed):
    status, output = disturbed.run("evaluate:10")
    assert status == 3 and "mmjax: SIGTERM received: saving a checkpoint before the run stops" in output, output
    assert "stopped at step 10 with a checkpoint; run the same command to resume at step 10" in output
    assert disturbed.checkpoints() == [8, 10] and (10, "validation") not in disturbed.rows()

    status, output = disturbed.run("int:17")
    assert status == 130 and resumed_at(output) == 10, output
    assert "mmjax: interrupted: saving a checkpoint before the run stops; press Ctrl-C again" in output
    where = "stopped at step 17 with a checkpoint; run the same command to resume at step 17"
    assert f"mmjax: interrupted: {where}" in output and "Traceback" not in output
    assert disturbed.checkpoints()[-1] == 17

    status, output = disturbed.run()
    assert status == 0 and resumed_at(output) == 17, output
    assert_same_end(disturbed, undisturbed)


@pytest.mark.parametrize(
    "phase", ["input", *(pytest.param(phase, marks=pytest.mark.slow) for phase in ("step", "evaluation", "save"))]
)
def test_a_phase_that_stalls_ends_the_run_with_the_stacks_of_its_threads(disturbed, phase):
    status, output = disturbed.run(f"hang:{phase}", f"--config.watchdog.{phase}=5")
    assert status == 3, output
    last = output.splitlines()[-1]
    assert re.search(rf"mmjax: stopped: no progress in {phase} for \d+ s, the limit watchdog.{phase} is 5 s \(st", last)
    assert "start the same command again" in last and "killable.py" in output and "Traceback" not in output


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
        assert status == (3 if kind == "term" else ENDED_BY_KILL), output
        assert (resumed_at(output) or 0) == restored, output
        restored = max(disturbed.checkpoints(), default=0)
    status, output = disturbed.run()
    assert status == 0 and (resumed_at(output) or 0) == restored, output
    assert_same_end(disturbed, undisturbed)


def trained(experiment: Experiment, step, state, count: int) -> tuple[object, list[str], list[float]]:
    """State after `count` steps, the fingerprints of their batches, and their losses."""
    prints, losses = [], []
    with contextlib.closing(experiment.train_batches(int(state.data_step))) as batches:
        for _ in range(count):
            batch = next(batches)
            prints.append(fingerprint(jax.device_get(batch)))
            state = step(state, batch)
            losses.append(jax.device_get(state.window)["loss"].compute())
    return state, prints, losses


def test_a_run_resumes_on_eight_devices_after_one_and_back(digits_cache, tmp_path):
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
