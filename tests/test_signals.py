"""SIGTERM, SIGHUP and Ctrl-C: real signals to real processes, also while the main thread runs C code."""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from mmjax.errors import ExitCode, MissingData, UserError

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 60

BLOCKED = """
import ctypes, signal, sys, time
from mmjax.host.interruption import handle_signals

step, resume = map(int, sys.argv[1:])
with handle_signals() as interruption:
    interruption.position = lambda: (step, resume)
    print("ready", flush=True)
    if step == resume:
        # As in a compilation, no Python code runs in the main thread, and signals do not end the call.
        mutex = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    while interruption.requested is None:
        time.sleep(0.01)
    print("requested", interruption.requested.name, flush=True)
    time.sleep(100)
"""


def start(program: str, *words: object) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A process that misses its signal would be waited for without end.
    timer = threading.Timer(4 * PATIENCE, process.kill)
    timer.daemon = True
    timer.start()
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def end(process: subprocess.Popen) -> tuple[int, str]:
    try:
        return process.wait(PATIENCE), process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number, position, status, said",
    [
        (signal.SIGTERM, (0, 0), 3, "mmjax: stopped by SIGTERM; run the same command to start again\n"),
        (signal.SIGHUP, (8, 8), 3, "mmjax: stopped by SIGHUP; run the same command to resume at step 8\n"),
        (signal.SIGINT, (8, 8), 130, "mmjax: interrupted; run the same command to resume at step 8\n"),
    ],
)
def test_a_signal_ends_a_blocked_process_at_once_if_nothing_is_unsaved(number, position, status, said):
    process = start(BLOCKED, *position)
    process.send_signal(number)
    assert end(process) == (status, said)


def test_a_signal_is_acknowledged_while_steps_are_unsaved_and_a_second_ctrl_c_stops_at_once():
    process = start(BLOCKED, 9, 8)
    process.send_signal(signal.SIGINT)
    first = "mmjax: interrupted: saving a checkpoint before the run stops; press Ctrl-C again to stop at once\n"
    assert process.stderr.readline() == first
    assert process.stdout.readline() == "requested SIGINT\n"
    # More signals of a launcher change nothing.
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "mmjax: SIGTERM received: saving a checkpoint before the run stops\n"
    process.send_signal(signal.SIGINT)
    last = "mmjax: interrupted again: stopped without a checkpoint; run the same command to resume at step 8\n"
    assert end(process) == (130, last)


def test_an_ignored_signal_stays_ignored_and_handlers_are_restored():
    program = """
import os, signal
from mmjax.host.interruption import handle_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = [signal.getsignal(number) for number in (1, 2, 15)]
print("ready", flush=True)
with handle_signals(), handle_signals(signal.SIGTERM):
    os.kill(os.getpid(), signal.SIGHUP)
assert before == [signal.getsignal(number) for number in (1, 2, 15)]
assert signal.set_wakeup_fd(-1) == -1
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert end(start(program)) == (-signal.SIGTERM, "")


def test_a_handler_that_a_c_library_installed_is_called_too():
    # JAX's preemption service, which makes all processes stop at one step, is such a handler.
    program = """
import ctypes, os, signal, time
from mmjax.host.interruption import handle_signals
note = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os.write(1, b"native %d\\n" % number))
with handle_signals(signal.SIGTERM):
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(signal.SIGTERM, ctypes.cast(note, ctypes.c_void_p))
    with handle_signals() as interruption:
        interruption.position = lambda: (1, 0)
        print("ready", flush=True)
        while interruption.requested is None:
            time.sleep(0.01)
        time.sleep(100)
"""
    process = start(program)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "native 15\n"
    process.kill()
    assert re.fullmatch("mmjax: SIGTERM received: .*\n", end(process)[1])


def refuse(where: str) -> None:
    raise MissingData(where, "is missing", "mount it")


def test_errors_of_users_cross_processes():
    with ProcessPoolExecutor(1) as pool, pytest.raises(MissingData) as caught:
        pool.submit(refuse, "data.path").result(PATIENCE)
    assert str(caught.value) == "data.path: is missing; mount it" and caught.value.where == "data.path"
    copy = pickle.loads(pickle.dumps(UserError("--a", "b", "c")))
    assert (copy.where, copy.problem, copy.remedy, copy.exit_code) == ("--a", "b", "c", ExitCode.INVALID_INPUT)


def test_exit_codes():
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("DONE", 0),
        ("FAILED", 1),
        ("INVALID_INPUT", 2),
        ("RESTART", 3),
        ("INTERRUPTED", 130),
    ]
