"""Programs from standard input, closed pipes, full disks, ASCII terminals; no growth over many steps."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import QUICK_FLAGS

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300

PRINTING = """
import sys
from mmjax.host.streams import open_standard_streams
from rich.console import Console
open_standard_streams()
for line in range(20_000):
    print("line", line, "\u2265")
Console().print("\u2026")
with open(sys.argv[1], "w") as file:
    print("end", file=sys.stderr)
    file.write(f"{file.fileno()}")
"""


def shell(command: str, tmp_path: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command of Bash; `$PRINT` is the program above."""
    paths = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "PROGRAM": PRINTING, "FILE": str(tmp_path / "file")}
    command = f"set -o pipefail; {command}".replace("$PRINT", '"$PYTHON" -c "$PROGRAM" "$FILE"')
    environment = {**os.environ, **paths, **environment}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=PATIENCE)


@pytest.mark.parametrize("command", ["$PRINT | head -1", "$PRINT 2>&1 | head -1", "$PRINT >&-", "$PRINT >&- 2>&- <&-"])
def test_a_program_goes_on_without_a_reader_of_its_output(tmp_path, command):
    done = shell(command, tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    # The file has not got the number of a closed stream.
    assert int((tmp_path / "file").read_text()) > 2
    if command == "$PRINT | head -1":
        said = b"mmjax: standard output was closed; the command goes on without it\nend\n"
        assert (done.stdout, done.stderr) == ("line 0 ≥\n".encode(), said)


def test_characters_that_a_terminal_lacks_are_replaced(tmp_path):
    done = shell("$PRINT | tail -2", tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"line 19999 ?\n?\n"), done.stderr


@pytest.mark.parametrize("command", ["--help", "doctor"])
def test_a_full_disk_under_standard_output_is_one_line(tmp_path, command):
    done = shell(f'"$PYTHON" -m mmjax {command} > /dev/full', tmp_path)
    assert (done.returncode, done.stderr) == (1, b"mmjax: error: standard output: No space left on device\n")


TRAINING = """
import json, os, pathlib, resource, sys
from ml_collections import ConfigDict
from mmjax.runs.run import train
from mmjax.training.checkpoint import CheckpointHook

folder, steps, workers = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
every = max(2, steps // 20)
config = ConfigDict({
    "seed": 0,
    "data": {"name": "synthetic", "image": [8, 8, 1], "letters": 8, "recording": 0.05, "classes": 4, "examples": 64,
             "inputs": {"image": {"size": [8, 8], "channels": 1}}, "workers": workers},
    "model": {"encoders": {"image": {"kind": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2}},
              "fusion": {"kind": "concatenation", "width": 16, "hidden": 16}},
    "tasks": {"label": {"kind": "classification"}},
    "optimizer": {"name": "adamw"},
    "schedule": {"kind": "cosine", "peak": 1e-3},
    "train": {"steps": steps, "batch_size": 16},
    "checkpoint": {"every": every},
    "evaluate": {"every": every, "splits": ["test"], "batch_size": 16},
    "log": {"every": every},
})
measured = {}
after_step = CheckpointHook.after_step

def measure(self, loop):
    after_step(self, loop)
    if loop.step % every == 0:
        self.checkpoints.wait()
        memory = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        measured[loop.step] = [memory / 2**20, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]

CheckpointHook.after_step = measure
train(config, folder / "run")
(folder / "measured.json").write_text(json.dumps(measured))
"""


def train_from_standard_input(tmp_path: pathlib.Path, steps: int, workers: int) -> subprocess.CompletedProcess:
    (tmp_path / "train.py").write_text(TRAINING)
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_FLAGS, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = f'cd "{tmp_path}"; "$PYTHON" - . {steps} {workers} < train.py'
    return shell(command, tmp_path, **settings)


def test_a_program_from_standard_input_trains_with_workers_on_an_ascii_terminal(tmp_path):
    done = train_from_standard_input(tmp_path, steps=3, workers=1)
    assert done.returncode == 0, done.stderr.decode()
    assert b"run summary" in done.stdout and done.stdout.isascii()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_over_2000_steps(tmp_path):
    """Run it with `pytest -m slow tests/test_streams.py`."""
    done = train_from_standard_input(tmp_path, steps=2000, workers=1)
    assert done.returncode == 0, done.stderr.decode()
    measured = json.loads((tmp_path / "measured.json").read_text())
    print(measured)
    (memory, files, threads), (last_memory, last_files, last_threads) = measured["500"], measured["2000"]
    # 1,500 steps with 15 evaluations and checkpoints: a leak of one batch a step would be 3 MiB, of a state 15 MiB.
    assert last_memory - memory < 20, measured
    assert last_files <= files + 2 and last_threads <= threads + 2, measured
