"""Two processes with four devices each match one process with eight, and never wait for each other for ever."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.experiment import Experiment
from mmjax.processes import agree_or_raise, initialize
from mmjax.processes.roll_call import roll_call
from mmjax.processes.watch import HeartbeatMonitor
from tests import small_recipe
from tests.conftest import QUICK_FLAGS
from tests.contracts import assert_close

TESTS = pathlib.Path(__file__).parent
PATIENCE = 240


def free_port() -> int:
    """A free port below those of outgoing connections, so that no other process takes it before its use."""
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            return port


@pytest.fixture(scope="module")
def environment(digits_cache) -> dict[str, str]:
    paths = {"MMJAX_CACHE": str(digits_cache), "PYTHONPATH": str(TESTS.parent), "COLUMNS": "500"}
    return {**os.environ, **paths, "JAX_PLATFORMS": "cpu"}


def run_processes(environment, count: int, *command: str, devices: int = 8) -> list[str]:
    """Runs a command in `count` processes with `devices` devices in total; returns the output of each."""
    port = free_port()
    running = []
    for number in range(count):
        identity = {}
        if count > 1:
            identity = {
                "MMJAX_COORDINATOR": f"127.0.0.1:{port}",
                "MMJAX_PROCESS_COUNT": str(count),
                "MMJAX_PROCESS_ID": str(number),
            }
        flags = f"--xla_force_host_platform_device_count={devices // count} {QUICK_FLAGS}"
        running.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**environment, **identity, "XLA_FLAGS": flags},
                cwd=TESTS.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs, end = [], time.monotonic() + PATIENCE
    try:
        for process in running:
            outputs.append(process.communicate(timeout=max(1, end - time.monotonic()))[0])
    finally:
        for process in running:
            process.kill()
    for number, process in enumerate(running):
        assert process.returncode == 0, f"process {number} of {count}:\n{outputs[number]}"
    return outputs


@pytest.mark.parametrize(
    "mesh, packed",
    [
        ("data=2 x fsdp=2 x tensor=2", False),
        ("data=2 x fsdp=2 x tensor=2", True),
        pytest.param("data=8", False, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_gradients_of_one(environment, tmp_path, mesh, packed):
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        run_processes(environment, count, str(TESTS / "train_process.py"), str(folder), mesh, *["packed"] * packed)
        found[count] = [dict(np.load(folder / f"found.{number}.npz")) for number in range(count)]
    one, both = found[1][0], found[2]
    rows = 8 if packed else 32
    assert sorted(row for process in both for row in process["rows"]) == list(range(rows)), (
        "a row is not loaded by exactly one process"
    )
    for process in both:
        np.testing.assert_allclose(process["loss"], one["loss"], rtol=1e-5)
        mine, truth = ({k: v for k, v in x.items() if k.startswith("gradients/")} for x in (process, one))
        assert truth and any(np.abs(value).max() > 0 for value in truth.values())
        assert_close(mine, truth)


def test_two_processes_train_one_run_and_one_of_them_writes_it(environment, tmp_path):
    first_output, second_output = run_processes(environment, 2, str(TESTS / "train_process.py"), str(tmp_path))
    first, second = (json.loads((tmp_path / f"result.{number}.json").read_text()) for number in range(2))
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert first["processes"] == second["processes"] == 2
    assert first["result"]["parameters_hash"] == second["result"]["parameters_hash"] == written["parameters_hash"]
    assert first["result"]["validation"] == second["result"]["validation"] == written["validation"]
    assert second["written"] == [] and {"config.json", "result.json", "parameters.txt"} <= set(first["written"])
    for said in ("run summary", "step 10/10", "output files"):
        assert said in first_output and said not in second_output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [*((step, "train") for step in (2, 4, 6, 8, 10)), *((step, "validation") for step in (6, 10))]
    assert sorted((row["step"], row["split"]) for row in rows) == sorted(expected)
    assert all(np.isfinite(row["loss"]) for row in rows)

    # Resume in one process: checkpoints of two processes are the same.
    run_processes(environment, 1, str(TESTS / "train_process.py"), str(tmp_path))
    again = json.loads((tmp_path / "result.0.json").read_text())
    assert again["processes"] == 1
    assert again["result"]["parameters_hash"] == written["parameters_hash"]


def start(
    environment, workdir, port: int, number: int, *overrides: str, kill: str = "", count: int = 2, notes=""
) -> subprocess.Popen:
    program = [str(TESTS / "killable.py")] if kill else ["-m", "mmjax"]
    recipe = f"--config={TESTS / 'small_recipe.py'}"
    where = [f"--coordinator=127.0.0.1:{port}", f"--process_count={count}", f"--process_id={number}"]
    return subprocess.Popen(
        [sys.executable, *program, "train", recipe, f"--workdir={workdir}", *where, *overrides],
        env={
            **environment,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count} {QUICK_FLAGS}",
            "MMJAX_TEST_KILL": kill,
            "MMJAX_TEST_NOTES": str(notes),
        },
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_to_end(running: list[subprocess.Popen]) -> tuple[list[str], list[float]]:
    """Output of each process, and the time at which it ended."""
    outputs, ends = [""] * len(running), [0.0] * len(running)

    def wait(number: int) -> None:
        outputs[number] = running[number].communicate(timeout=PATIENCE)[0]
        ends[number] = time.monotonic()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(len(running))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in running:
            process.kill()
    return outputs, ends


def read_notes(paths) -> dict[tuple[int, int], int]:
    """Example index by (step, row of the global batch); duplicate notes must agree."""
    noted: dict[tuple[int, int], int] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            step, row, number = map(int, line.split())
            assert noted.setdefault((step, row), number) == number, f"another example at step {step}, row {row}"
    return noted


@pytest.mark.slow
@pytest.mark.parametrize("count, victim, again", [(2, 1, 1), (4, 2, 2)])
def test_when_a_process_dies_the_others_name_it_and_stop_and_fewer_go_on_with_the_same_batches(
    environment, tmp_path, count, victim, again
):
    workdir, port = tmp_path / "run", free_port()
    kills = ["step:13" if number == victim else "pace:0.01" for number in range(count)]
    outputs, ends = run_to_end(
        [
            start(environment, workdir, port, number, "--config.mesh.heartbeat_timeout=5", kill=kill, count=count,
                  notes=tmp_path / f"first.{number}")
            for number, kill in enumerate(kills)
        ]
    )  # fmt: skip
    for number, output in enumerate(outputs):
        if number != victim:
            assert f"mmjax: stopped: process {victim} of {count} on " in output, output
            assert re.search(r"at step \d+, sent no heartbeat for \d+ s.*; start the same command again", output)
            assert "Traceback" not in output
            assert ends[number] - ends[victim] < 60

    port = free_port()
    outputs, _ = run_to_end(
        running := [
            start(environment, workdir, port, number, kill="pace:0", count=again, notes=tmp_path / f"second.{number}")
            for number in range(again)
        ]
    )
    assert [process.returncode for process in running] == [0] * again, outputs
    assert "resumed at step 8" in outputs[0], outputs[0]
    noted = read_notes(sorted(tmp_path.glob("*.[0-9]")))
    assert {step for step, _ in read_notes(tmp_path.glob("first.*"))} >= set(range(13))
    assert {step for step, _ in read_notes(tmp_path.glob("second.*"))} == set(range(8, 28))
    with contextlib.closing(Experiment(small_recipe.get_config()).pipeline.train_batches("train", 16)) as batches:
        for step in range(28):
            assert [noted[step, row] for row in range(16)] == list(next(batches).ids)
    assert json.loads((workdir / "result.json").read_text())["steps"] == 28


@pytest.mark.slow
def test_when_the_coordinator_dies_the_others_name_it_and_stop(environment, tmp_path):
    port = free_port()
    outputs, ends = run_to_end(
        [
            start(environment, tmp_path / "run", port, number, kill="pace:0.01" if number else "step:5")
            for number in range(2)
        ]
    )
    assert f"mmjax: stopped: process 0 of 2 at 127.0.0.1:{port} does not answer" in outputs[1], outputs[1]
    assert ends[1] - ends[0] < 30


def test_what_one_process_refuses_none_begins(environment, tmp_path):
    port, workdir = free_port(), tmp_path / "run"
    running = [
        start(environment, workdir, port, 0),
        start(environment, workdir, port, 1, "--config.tasks.digit.kind=no"),
    ]
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [2, 2], outputs
    assert "process 1: tasks.digit.kind: unknown kind 'no'" in outputs[0]
    assert "tasks.digit.kind: unknown kind 'no'" in outputs[1]
    assert not workdir.exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step_with_a_checkpoint(environment, tmp_path):
    workdir = tmp_path / "run"
    for kills, status, said in (
        (("pace:0.01", "term:5"), 3, "with a checkpoint; run the same command to resume"),
        (("", ""), 0, ""),
    ):
        port = free_port()
        running = [start(environment, workdir, port, number, kill=kill) for number, kill in enumerate(kills)]
        try:
            outputs = [process.communicate(timeout=PATIENCE)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        assert [process.returncode for process in running] == [status, status], outputs
        assert all(said in output for output in outputs)
    stopped = int(re.search(r"resumed at step (\d+)", outputs[0])[1])
    assert 5 < stopped < 28
    assert json.loads((workdir / "result.json").read_text())["steps"] == 28


def test_a_process_reports_missing_peers():
    port = free_port()
    problem = f"--coordinator=127.0.0.1:{port}: process 1 of 2 did not connect within 1 s; start the same command"
    with pytest.raises(UserError, match=problem):
        initialize(f"127.0.0.1:{port}", 2, 0, start_seconds=1)


def test_one_process_needs_no_coordinator(monkeypatch):
    for name in ("MMJAX_COORDINATOR", "MMJAX_PROCESS_COUNT", "MMJAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    initialize()
    initialize(process_count=1)
    # A Slurm batch script outside `srun` is one process, however many tasks the job has.
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    initialize()
    assert not jax.distributed.is_initialized()
    with agree_or_raise("nothing"):
        pass


def said(host="a", step=3, time=0.0, ended=""):
    return {"host": host, "step": step, "time": time, "ended": ended}


def test_the_watch_names_silent_late_failed_and_missing_processes():
    now = [0.0]
    monitor = HeartbeatMonitor(3, heartbeat_timeout=10, stall=100, clock=lambda: now[0])
    everyone = {0: said(), 1: said(host="b"), 2: said(host="c")}
    assert monitor.check(everyone) is None
    assert (
        monitor.check({**everyone, 1: said(ended="ValueError: no")})
        == "process 1 of 3 on a, at step 3, failed: ValueError: no"
    )
    for now[0] in (5.0, 12.0):
        alive = {process: {**words, "time": now[0]} for process, words in everyone.items() if process != 1}
        verdict = monitor.check({**alive, 1: everyone[1]})
    assert verdict == "process 1 of 3 on b, at step 3, sent no heartbeat for 12 s: the process or its host is down"
    # A finished process may be silent.
    assert monitor.check({**alive, 1: said(ended="done")}) is None
    ahead = {process: said(step=9 if process else 3) for process in everyone}
    for now[0] in (20.0, 70.0, 125.0):
        verdict = monitor.check({process: {**words, "time": now[0]} for process, words in ahead.items()})
    assert verdict == "process 0 of 3 on a, at step 3, has stalled for 125 s, while others are at step 9"
    # Processes that are all at the same step may compute without limit.
    for now[0] in (300.0, 1000.0):
        verdict = monitor.check({process: {**words, "time": now[0]} for process, words in everyone.items()})
    assert verdict is None
    assert monitor.check({0: said(time=1.0), 2: said(time=1.0)}) == "process 1 of 3 did not start"


def test_the_roll_call_waits_for_all_and_reports_missing_processes_to_all():
    def call(count: int, come: list[int], seconds: float):
        address, answers = f"127.0.0.1:{free_port()}", {}

        def one(number):
            try:
                answers[number] = roll_call(address, count, number, seconds)
            except UserError as error:
                answers[number] = str(error)

        threads = [threading.Thread(target=one, args=(number,)) for number in come]
        for thread in reversed(threads):  # process 0 last
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join(30)
        return answers

    assert call(4, [0, 1, 2, 3], 10) == dict.fromkeys(range(4))
    missing = call(5, [0, 2], 3.0)
    assert sorted(missing) == [0, 2]
    assert all("processes 1, 3, 4 of 5 did not connect within 3 s; start the same" in text for text in missing.values())
    assert "process 0 of 2 did not listen on this address" in call(2, [1], 0.5)[1]


@pytest.mark.parametrize(
    "environment_variables, arguments, expected",
    [
        ({}, {"process_count": 2, "process_id": 0}, "--coordinator: is required with --process_count, --process_id"),
        ({"MMJAX_COORDINATOR": "host:1"}, {"process_id": 0}, "--process_count: is required with"),
        ({}, {"coordinator": "host", "process_count": 2, "process_id": 0}, "give HOST:PORT of process 0"),
        ({}, {"coordinator": "host:1", "process_count": 2, "process_id": 2}, "--process_id: 2 is out of range"),
        ({}, {"coordinator": "host:1", "process_count": 0, "process_id": 0}, "--process_count: 0 is not valid"),
        ({"MMJAX_PROCESS_COUNT": "two"}, {}, "MMJAX_PROCESS_COUNT: 'two' is not an integer"),
    ],
)
def test_half_an_identity_is_refused(monkeypatch, environment_variables, arguments, expected):
    for name, value in environment_variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected):
        initialize(**arguments)
