"""Lost and failed processes of a run: the others name them, and exit with the code that says whether to start again.

The processes wait inside a run without training, so that these tests take seconds. All of them:
`pytest -m "slow or not slow" tests/test_lost_processes.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 120
HOST = socket.gethostname()


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


class Peers:
    """Starts processes of a run, and ends all that are left."""

    def __init__(self, count: int):
        self.address, self.count = free_address(), count
        self.processes: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def start(self, *indices: int) -> None:
        for index in indices:
            self.processes[index] = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "peer.py"), self.address, str(self.count), str(index)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def connected(self) -> Peers:
        self.start(*range(self.count))
        for process in self.processes.values():
            assert process.stdout.readline() == "connected\n", process.stderr.read()
        return self

    def end(self, index: int) -> tuple[int, str]:
        """Exit code and standard error of a process."""
        # Not `communicate`, which would close the standard input that the process waits for.
        return self.processes[index].wait(PATIENCE), self.processes[index].stderr.read()

    def say(self, index: int, word: str) -> None:
        print(word, file=self.processes[index].stdin, flush=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_process_that_dies_or_stops_before_training_is_named_within_30_seconds(number):
    with Peers(2).connected() as peers:
        peers.processes[1].send_signal(number)
        status, said = peers.end(0)
    assert status == 3
    silence = re.search(rf"mmjax: stopped: process 1 of 2 on {HOST}, at step -1, sent no heartbeat for (\d+) s", said)
    assert silence and int(silence[1]) < 30, said


@pytest.mark.parametrize(
    "number, reason",
    [
        (signal.SIGKILL, "at {address} does not answer"),
        pytest.param(signal.SIGSTOP, r"has not answered for 2\d s", marks=pytest.mark.slow),
    ],
)
def test_process_0_that_dies_or_stops_before_training_is_named(number, reason):
    with Peers(2).connected() as peers:
        peers.processes[0].send_signal(number)
        status, said = peers.end(1)
    assert status == 3
    assert re.search(f"mmjax: stopped: process 0 of 2 {reason.format(address=peers.address)}; start the same", said), (
        said
    )


@pytest.mark.parametrize("failed", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("error, status", [("ValueError: broken", 1), ("UserError: --flag: is wrong; give another", 2)])
def test_the_others_exit_with_the_code_of_a_process_that_fails_by_itself(failed, error, status):
    # A launcher must not start a run again that fails again.
    with Peers(2).connected() as peers:
        peers.say(failed, error.partition(":")[0])
        found, said = peers.end(1 - failed)
        assert found == status
        assert f"mmjax: stopped: process {failed} of 2 on {HOST}" in said and f"failed: {error}\n" in said, said
        assert peers.end(failed)[0] == status


def waits_for_process_2_only(peers: Peers) -> None:
    for line in peers.processes[0].stderr:
        if "mmjax: waiting for process 2 of 3 to connect to" in line:
            return
    raise AssertionError("process 0 ended")


@pytest.mark.parametrize("killed, host", [(0, "127.0.0.1"), (1, HOST)])
def test_a_process_that_dies_while_others_still_start_is_named(killed, host):
    with Peers(3) as peers:
        peers.start(0, 1)
        waits_for_process_2_only(peers)
        peers.processes[killed].kill()
        status, said = peers.end(1 - killed)
    assert status == 3
    assert said.splitlines()[-1].startswith(
        f"mmjax: error: process {killed} of 3 on {host} ended during start-up; start"
    )


CONNECTED = """
import sys, time
from mmjax.processes.roll_call import connected
with connected(sys.argv[1], 2, int(sys.argv[2]), 60):
    print("connected", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_dies_while_jax_connects_is_named(index):
    address = free_address()
    port = int(address.rpartition(":")[2])
    hello = {"hello": "mmjax process", "number": 1, "count": 2, "host": "other"}
    outcome = {"late": None, "lost": None, "host": "other"}
    with socket.create_server(("127.0.0.1", port)) if index else contextlib.nullcontext() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", CONNECTED, address, str(index)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # This test is the other process.
            connection = server.accept()[0] if server else connect(port)
            connection.sendall(json.dumps(outcome if server else hello).encode() + b"\n")
            assert process.stdout.readline() == "connected\n"
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            assert process.wait(PATIENCE) == 3
            said = f"mmjax: stopped: process {1 - index} of 2 on other ended during start-up; start the same command"
            assert process.stderr.read().startswith(said)
        finally:
            process.kill()
            process.communicate()


def connect(port: int) -> socket.socket:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.05)
