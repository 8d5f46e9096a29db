"""Processes of the commands under test: start, wait, signals, children."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 600.0
"""Seconds until a process counts as hanging, on a busy machine; one takes about five."""


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Waits for a condition; returns False after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Command:
    """One running `mmjax` command.

    Attributes:
      pid: process id.
      signs: folder of the files with which the process waits at a moment.
    """

    def __init__(self, launcher: Launcher, pid: int, signs: pathlib.Path):
        self.launcher, self.pid, self.signs = launcher, pid, signs
        self.started = time.monotonic()

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.launcher.codes.get(self.pid, None if self.launcher.running else -signal.SIGKILL)

    @property
    def output(self) -> str:
        """All that it printed so far."""
        return (self.signs / "output").read_text(errors="replace")

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end."""
        return self.launcher.ends[self.pid] - self.started

    def reached(self) -> bool:
        """Waits until the process is at its moment; False if it ended before."""
        wait_until(lambda: (self.signs / "reached").exists() or self.code is not None)
        return (self.signs / "reached").exists()

    def go(self) -> None:
        """Lets the process run on from its moment."""
        (self.signs / "go").touch()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> int | None:
        """Waits for the end; kills a process that hangs, and returns None for it."""
        if wait_until(lambda: self.code is not None):
            return self.code
        self.send(signal.SIGKILL)
        wait_until(lambda: self.code is not None)
        return None

    def children(self) -> list[int]:
        """Process ids of the data-loading workers."""
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return sorted(found)


class Launcher:
    """Starts commands through `launcher.py`; see there.

    Args:
      work: folder of caches and of each command's files.
    """

    def __init__(self, work: pathlib.Path):
        self.work = work
        self.codes: dict[int, int] = {}
        self.ends: dict[int, float] = {}
        self._pids: dict[str, int] = {}
        self._count, self._lock = 0, threading.Lock()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "500",
            "JAX_PLATFORMS": "cpu",
            "MMJAX_CACHE": str(work / "cache"),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
            # Compiled programs are shared by all commands, and the command does not execute itself again.
            "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=work,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match line.split():
                case ["started", name, pid]:
                    self._pids[name] = int(pid)
                case ["ended", pid, code]:
                    self.ends[int(pid)] = time.monotonic()
                    self.codes[int(pid)] = int(code)

    def start(self, argv: Sequence[str], moment: str = "", file_bytes: int | None = None) -> Command:
        """Starts `mmjax ARGV`.

        Args:
          argv: arguments.
          moment: moment at which the process waits; see `moments`.
          file_bytes: limit of the size of files, which acts like a full disk.
        """
        with self._lock:
            self._count += 1
            name = f"{os.getpid()}-{self._count}"
            signs = self.work / "commands" / name
            signs.mkdir(parents=True)
            order = {"name": name, "argv": list(argv), "moment": moment, "signs": str(signs)}
            order |= {"output": str(signs / "output"), "file_bytes": file_bytes}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        if not wait_until(lambda: name in self._pids or self._process.poll() is not None) or name not in self._pids:
            raise RuntimeError("the launcher does not start processes")
        return Command(self, self._pids[name], signs)

    @property
    def running(self) -> bool:
        """False once the launcher has ended, and its commands with it."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the launcher, and all commands that still run."""
        for pid in set(self._pids.values()) - set(self.codes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def free_port() -> int:
    """Returns a TCP port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
