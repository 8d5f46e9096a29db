"""Static cycles of Pallas kernels from the TPU compiler, cached by kernel, device kind and libtpu version.

`kernel_cycles.json` beside this file has the kernels of the recorded plans. Others are compiled in a child process and
cached in `$MMJAX_CACHE/kernel_cycles.json`.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from mmjax.files import cache_folder, write_json
from mmjax.planning.child import child_environment
from mmjax.planning.kernels import CompiledCycles, Kernel

COMMITTED = pathlib.Path(__file__).with_name("kernel_cycles.json")
"""Table of the recorded plans: {libtpu version: {device kind: {`Kernel.key`: [cycles, bundles]}}}."""

KERNEL_SECONDS = 300.0
"""Time limit for compiling one kernel, after which its cycles are unknown."""

Compile = Callable[[str, Sequence[Kernel], threading.Event], Iterable[CompiledCycles | None]]
"""Compiles kernels for a topology until the event is set; None for a kernel that the compiler failed on."""


class KernelCycles:
    """Table of compiled kernels of one libtpu version.

    Args:
      libtpu: version of libtpu.
      written: file that keeps newly compiled kernels; by default in the cache folder.
      compile: compiles kernels that are not in the table.
    """

    def __init__(self, libtpu: str, written: pathlib.Path | None = None, compile: Compile | None = None):
        self.libtpu = libtpu
        self.written = written or cache_folder() / "kernel_cycles.json"
        self._compile = compile or compile_in_child
        self._failed: set[tuple[str, str]] = set()

    def find(self, device_kind: str, kernel: Kernel) -> CompiledCycles | None:
        """Returns the analysis of a kernel, or None if it has not been compiled."""
        if (device_kind, kernel.key) in self._failed:
            return CompiledCycles()
        for path in (COMMITTED, self.written):
            found = _read(path).get(self.libtpu, {}).get(device_kind, {}).get(kernel.key)
            if found is not None:
                return CompiledCycles(*found)
        return None

    @contextlib.contextmanager
    def compile_alongside(
        self, device_kind: str, topology: str, kernels: Iterable[Kernel], log: Callable[[str], None]
    ) -> Iterator[None]:
        """Compiles the missing kernels while the body of the `with` statement runs.

        Waits for them at the end of the body, or abandons them if the body raises.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self.compile_missing, args=(device_kind, topology, kernels, log, stop))
        thread.start()
        try:
            yield
        except BaseException:
            stop.set()
            raise
        finally:
            thread.join()

    def compile_missing(
        self,
        device_kind: str,
        topology: str,
        kernels: Iterable[Kernel],
        log: Callable[[str], None],
        stop: threading.Event | None = None,
    ) -> None:
        """Compiles the kernels that are not in the table, until `stop` is set.

        Those that fail are not retried by this object.
        """
        stop = stop or threading.Event()
        missing = [kernel for kernel in kernels if self.find(device_kind, kernel) is None]
        if not missing:
            return
        log(f"compiling {len(missing)} Pallas kernel{'s' * (len(missing) > 1)} alone, for the compiler's cycles")
        # After `stop`, the results end before the kernels do.
        for kernel, compiled in zip(missing, self._compile(topology, missing, stop), strict=False):
            if compiled is None:
                self._failed.add((device_kind, kernel.key))
            else:
                self._write(device_kind, kernel, compiled)

    def _write(self, device_kind: str, kernel: Kernel, compiled: CompiledCycles) -> None:
        table = _read(self.written)
        entries = table.setdefault(self.libtpu, {}).setdefault(device_kind, {})
        entries[kernel.key] = [compiled.cycles, compiled.bundles]
        # Without a writable cache folder, the kernels are compiled again next time.
        with contextlib.suppress(OSError):
            write_json(self.written, table)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def compile_in_child(
    topology: str, kernels: Sequence[Kernel], stop: threading.Event | None = None
) -> Iterator[CompiledCycles | None]:
    """Compiles kernels in a child process; a kernel that crashes the child does not affect the others.

    Ends early, without further results, once `stop` is set.
    """
    stop = stop or threading.Event()
    requests = [{"topology": topology, **_request(kernel)} for kernel in kernels]
    while requests:
        for compiled in _run(requests, stop):
            requests = requests[1:]
            yield compiled
        if stop.is_set():
            return
        if requests:
            # The child ended at this kernel.
            requests = requests[1:]
            yield None


def _request(kernel: Kernel) -> dict[str, Any]:
    """Lowers a kernel for TPUs and returns its request for `kernel_compiler`, without the topology."""
    from jax import export

    def call(*arrays: jax.Array) -> Any:
        return kernel.equation.primitive.bind(*arrays, **kernel.equation.params)

    operands = [jax.ShapeDtypeStruct(each.aval.shape, each.aval.dtype) for each in kernel.equation.invars]
    text = export.export(jax.jit(call), platforms=["tpu"])(*operands).mlir_module()
    match = re.search(r'backend_config = "((?:[^"\\]|\\.)*)"', text)
    assert match is not None, "a Pallas kernel lowers to a custom call with a backend_config"
    # MLIR escapes a backslash as two, and quotes and control characters as a backslash and two hexadecimal digits.
    config = re.sub(r"\\(\\|[0-9A-F]{2})", lambda code: _unescape(code[1]), match[1])
    return {
        "operands": kernel.operands,
        "results": kernel.results,
        "backend_config": config,
        "trips": kernel.trips,
    }


def _unescape(code: str) -> str:
    return code if code == "\\" else chr(int(code, 16))


def _run(requests: Sequence[dict[str, Any]], stop: threading.Event) -> Iterator[CompiledCycles]:
    """Yields the results up to the first kernel that crashes the child or exceeds the time limit, or until `stop`."""
    with tempfile.TemporaryFile("w+") as questions:
        questions.writelines(json.dumps(request) + "\n" for request in requests)
        questions.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "mmjax.planning.kernel_compiler"],
            stdin=questions, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment(), text=True,
        )  # fmt: skip
    with child:
        threading.Thread(target=_kill_on, args=(stop, child), daemon=True).start()
        try:
            for _ in requests:
                timer = threading.Timer(KERNEL_SECONDS, child.kill)
                timer.start()
                line = child.stdout.readline()  # type: ignore[union-attr]
                timer.cancel()
                if not line.endswith("\n"):
                    return
                yield CompiledCycles(**json.loads(line))
        finally:
            child.kill()


def _kill_on(stop: threading.Event, child: subprocess.Popen[str]) -> None:
    """Kills the child once `stop` is set. Returns soon after the child ends."""
    while child.poll() is None:
        if stop.wait(0.5):
            child.kill()
