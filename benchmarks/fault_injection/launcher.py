"""Starts many `mmjax` commands quickly: each is forked from one process that has imported the package but not used JAX.

Reads orders from standard input, one JSON object a line, and writes `started NAME PID` and `ended PID CODE`. A command
is a process of its own, with its own signals, files and exit; only the seconds of its imports are saved.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys


def main() -> int:
    """Serves orders until standard input ends; in a forked process, runs the command."""
    _import_package()
    buffer = b""
    print("ready", flush=True)
    while True:
        _report_ended()
        if not select.select([0], [], [], 0.01)[0]:
            continue
        received = os.read(0, 1 << 16)
        if not received:
            return 0
        *lines, buffer = (buffer + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return _run(order)
            print("started", order["name"], pid, flush=True)


def _import_package() -> None:
    from mmjax.host.quiet import quiet_libraries

    quiet_libraries()
    for name in ("mmjax.__main__", "mmjax.commands.train", "mmjax.runs.run", "clu.parameter_overview", "tensorboardX"):
        importlib.import_module(name)


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)


def _run(order: dict) -> int:
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    # Shells let their background jobs ignore these signals.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if order["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    sys.argv = ["mmjax", *order["argv"]]
    if order["moment"]:
        from moments import pause_at

        pause_at(order["moment"], order["signs"])
    from mmjax.__main__ import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
