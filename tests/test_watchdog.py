"""Watchdog of one process: which phase stalled, with the stacks of all threads and exit code 3."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

from mmjax.host.child_processes import is_stopped
from mmjax.processes.heartbeats import HeartbeatMonitor
from mmjax.processes.stall import ActiveClock, Phases
from mmjax.training.hooks.watch import PhaseHook
from mmjax.training.loop import Hook

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 120


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def phases(**limits: float) -> tuple[Phases, Clock]:
    clock = Clock()
    return Phases(limits, clock), clock


def check_at(found: Phases, clock: Clock, now: float) -> str | None:
    clock.now = now
    return found.check()


def test_a_phase_stalls_after_its_limit_without_progress():
    found, clock = phases(evaluation=10, step=0)
    assert check_at(found, clock, 100) is None
    with found.phase("evaluation"):
        assert check_at(found, clock, 105) is None
        assert check_at(found, clock, 115) is None
        found.advance()
        assert check_at(found, clock, 116) is None
        assert check_at(found, clock, 126) is None
        assert check_at(found, clock, 126.5) == (
            "no progress in evaluation for 10 s, the limit watchdog.evaluation is 10 s"
        )
    # Without a limit, and outside of all phases, nothing stalls.
    found.enter("step")
    assert check_at(found, clock, 127) is None and check_at(found, clock, 1e6) is None
    found.enter(None)
    assert check_at(found, clock, 2e6) is None and check_at(found, clock, 3e6) is None


def test_the_wait_for_a_batch_and_the_step_are_phases():
    found, clock = phases(input=10, step=20)
    seen = []

    def batches():
        for batch in range(2):
            seen.append(found._name)
            yield batch

    for _ in found.batches(batches()):
        seen.append(found._name)
        hook = PhaseHook(Hook(), "save", type("Watchdog", (), {"phases": found}))
        hook.hook.after_step = lambda loop: seen.append(found._name)
        hook.after_step(None)
        seen.append(found._name)
    assert seen == 2 * ["input", "step", "save", "step"]


def test_a_pause_of_the_process_does_not_count():
    time = Clock()
    clock = ActiveClock(5, time)
    for time.now, expected in ((4, 4), (9, 9), (3600, 24), (3605, 29)):
        assert clock() == expected


def heartbeats(now: float, *steps: int) -> dict[int, dict]:
    return {
        process: {"host": "abc"[process], "step": step, "time": now, "ended": ""} for process, step in enumerate(steps)
    }


def test_a_pause_of_all_processes_blames_none_and_a_late_process_is_late_behind_the_others():
    clock = Clock()
    monitor = HeartbeatMonitor(2, 60.0, 1800.0, clock)

    def check(now: float, *steps: int) -> str | None:
        clock.now = now
        return monitor.check(heartbeats(now, *steps))

    for now in range(0, 3 * 1800, 5):
        assert check(now, 99, 99) is None
    # The first one to report its next step makes no culprit of the other.
    assert check(5400, 100, 99) is None
    assert check(5400 + 1790, 100, 99) is None
    assert "process 1 of 2 on b, at step 99, has stalled" in check(5400 + 1801, 100, 99)
    # A process that is always one step behind but moves is not late.
    for step in range(101, 110):
        assert check(8000 + 1000 * step, step, step - 1) is None


def test_the_exit_code_is_that_of_a_process_that_failed_by_itself():
    clock = Clock()
    monitor = HeartbeatMonitor(2, 10, 100, clock)
    ended = heartbeats(0, 5, 5)
    ended[1] |= {"ended": "UserError: --flag: is wrong", "code": 2}
    assert monitor.check(ended) is None  # the other process usually finds the same
    clock.now = 9.0
    assert monitor.check({**heartbeats(9, 5, 5), 1: ended[1]}) is None
    clock.now = 10.5
    assert monitor.check({**heartbeats(10.5, 5, 5), 1: ended[1]}) == (
        "process 1 of 2 on b, at step 5, failed: UserError: --flag: is wrong"
    )
    assert monitor.exit_code == 2
    monitor = HeartbeatMonitor(2, 10, 100, clock)
    assert monitor.check({**heartbeats(0, 5), 1: {**heartbeats(0, 5, 5)[1], "ended": "ValueError: no", "code": 1}})
    assert monitor.exit_code == 1
    monitor.check(heartbeats(0, 5, 5))
    clock.now = 30.0
    assert monitor.check({**heartbeats(1, 5, 5), 0: heartbeats(2, 5)[0]}) is None
    clock.now = 41.0
    assert "sent no heartbeat" in monitor.check({**heartbeats(1, 5, 5), 0: heartbeats(3, 5)[0]})
    assert monitor.exit_code == 3


STALLED = """
import multiprocessing, os, signal, threading, time
from mmjax.processes import watchdog
from mmjax.processes.stall import StallConfig

def wait_for_ever():
    time.sleep(1000)

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(1000,), name="grain-worker")
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)
    threading.Thread(target=wait_for_ever, daemon=True).start()
    with watchdog() as watch, watch.limits(60, 60, StallConfig(input=0.5)):
        with watch.phases.phase("evaluation"):
            time.sleep(1)
        print(worker.pid, flush=True)
        next(watch.phases.batches(iter(wait_for_ever, None)))
"""


def test_a_stalled_process_prints_its_stacks_names_the_phase_and_exits_with_code_3(tmp_path):
    script = tmp_path / "stalled.py"
    script.write_text(STALLED)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mmjax: stopped: no progress in input for "), last
    worker = done.stdout.strip()
    assert f"s, the limit watchdog.input is 0.5 s; data-loading process {worker} is stopped by a signal" in last
    assert "start the same command again" in last and "Traceback" not in done.stderr
    # Stacks of the main thread and of the other one.
    assert done.stderr.count("in wait_for_ever") == 2, done.stderr
    end = time.monotonic() + PATIENCE
    while is_stopped(int(worker)):
        assert time.monotonic() < end, "the stopped worker is left"
        time.sleep(0.01)
