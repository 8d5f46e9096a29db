"""Child processes that run a module of this package."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import mmjax


def child_environment() -> dict[str, str]:
    """Returns environment variables for a child process that imports the same mmjax and uses only the CPU."""
    path = os.pathsep.join([str(pathlib.Path(mmjax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "JAX_PLATFORMS": "cpu"}


def run_child(module: str, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module words` and returns its exit code and output.

    Raises:
      subprocess.TimeoutExpired: after `timeout` seconds; the child is killed.
    """
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=timeout)
