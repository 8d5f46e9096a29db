"""Strikes: signals to processes, and damage to files of a workdir."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Callable

from fault_injection.processes import wait_until
from fault_injection.trial import Scene

Strike = Callable[[Scene], None]

ACKNOWLEDGED_SECONDS = 10.0
"""Longest time until a signal is acknowledged."""


def kill(scene: Scene) -> None:
    """SIGKILL."""
    scene.send(signal.SIGKILL)


def ask_to_stop(number: signal.Signals, times: int = 1) -> Strike:
    """A signal that asks the process to stop; waits for the process to say so or to end."""

    def strike(scene: Scene) -> None:
        command = scene.commands[scene.victim]
        for count in range(1, times + 1):
            began = time.monotonic()
            scene.send(number)
            said = wait_until(
                lambda count=count: command.code is not None or command.output.count("mmjax:") >= count,
                ACKNOWLEDGED_SECONDS,
            )
            seconds = time.monotonic() - began
            scene.notes.append(f"acknowledged after {seconds:.1f} s" if said else "not acknowledged")

    return strike


def stop_and_continue(seconds: float) -> Strike:
    """SIGSTOP, and SIGCONT after some seconds."""

    def strike(scene: Scene) -> None:
        scene.send(signal.SIGSTOP)
        time.sleep(seconds)
        scene.send(signal.SIGCONT)

    return strike


def stop_for_good(scene: Scene) -> None:
    """SIGSTOP; SIGKILL once all other processes have ended."""
    scene.send(signal.SIGSTOP)
    others = [command for index, command in enumerate(scene.commands) if index != scene.victim]
    wait_until(lambda: all(command.code is not None for command in others))
    scene.send(signal.SIGKILL)


def at_random(strike: Strike, seed: int) -> Strike:
    """A strike after a random share of the time that an undisturbed run takes."""
    share = random.Random(seed).uniform(0.02, 0.98)

    def delayed(scene: Scene) -> None:
        delay = share * scene.duration
        wait_until(lambda: scene.commands[scene.victim].code is not None, delay)
        scene.notes.append(f"after {share:.0%} of the time")
        strike(scene)

    return delayed


def strike_worker(strike: Callable[[int], None]) -> Strike:
    """A strike on the first data-loading worker process."""

    def strike_first(scene: Scene) -> None:
        victim = scene.commands[scene.victim]
        assert wait_until(victim.children), "the run has no data-loading processes"
        strike(victim.children()[0])

    return strike_first


def kill_worker(pid: int) -> None:
    """SIGKILL to a worker."""
    os.kill(pid, signal.SIGKILL)


def stop_worker(pid: int) -> None:
    """SIGSTOP to a worker."""
    os.kill(pid, signal.SIGSTOP)


def pause_worker(pid: int) -> None:
    """SIGSTOP to a worker, and SIGCONT after two seconds."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(pid, signal.SIGCONT)


def second_run(argv_of: Callable[[pathlib.Path], list[str]]) -> Strike:
    """A second `train` in the same workdir, which must be refused."""

    def strike(scene: Scene) -> None:
        second = scene.launcher.start(argv_of(scene.workdir))
        code, said = second.wait(), second.output.strip().splitlines()[-1:]
        scene.notes.append(f"second run: exit {code}, {' '.join(said)}".replace(str(scene.workdir), "WORKDIR"))
        assert code == 2 and said and "is in use" in said[0], second.output

    return strike


def delete(*names: str) -> Strike:
    """Deletes files and folders of the workdir; "" is the workdir itself."""

    def strike(scene: Scene) -> None:
        for name in names:
            path = scene.workdir / name
            if path.is_dir():
                # The run may write to the folder while it is deleted.
                wait_until(lambda path=path: shutil.rmtree(path, ignore_errors=True) or not path.exists())
            else:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()

    return strike


def change(name: str, edit: Callable[[bytes], bytes]) -> Strike:
    """Changes the content of a file of the workdir; a name that begins with "largest:" selects a folder's largest."""

    def strike(scene: Scene) -> None:
        path = scene.workdir / name.removeprefix("largest:")
        if name.startswith("largest:"):
            files = [file for file in path.rglob("*") if file.is_file()]
            path = max(files, key=lambda file: file.stat().st_size)
        path.write_bytes(edit(path.read_bytes()))

    return strike


def change_arrays(step: int, edit: Callable[[bytes], bytes]) -> Strike:
    """Changes all files that hold the arrays of a checkpoint."""

    def strike(scene: Scene) -> None:
        for path in (scene.workdir / "checkpoints" / str(step) / "default").rglob("d/*"):
            path.write_bytes(edit(path.read_bytes()))

    return strike


def write(name: str, content: bytes) -> Strike:
    """Writes a file of the workdir, in a new folder if need be."""

    def strike(scene: Scene) -> None:
        path = scene.workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return strike


def replace_by_folder(name: str) -> Strike:
    """Puts a folder in the place of a file."""

    def strike(scene: Scene) -> None:
        (scene.workdir / name).unlink()
        (scene.workdir / name).mkdir()

    return strike


def replace_by_file(name: str) -> Strike:
    """Puts a file in the place of a folder."""

    def strike(scene: Scene) -> None:
        shutil.rmtree(scene.workdir / name)
        (scene.workdir / name).write_text("")

    return strike


def copy_folder(source: str, target: str) -> Strike:
    """Puts a copy of one folder of the workdir in the place of another."""

    def strike(scene: Scene) -> None:
        shutil.rmtree(scene.workdir / target, ignore_errors=True)
        shutil.copytree(scene.workdir / source, scene.workdir / target)

    return strike


def all_of(*strikes: Strike) -> Strike:
    """Several strikes, one after the other."""

    def strike(scene: Scene) -> None:
        for one in strikes:
            one(scene)

    return strike


def flip_bit(data: bytes) -> bytes:
    """Flips one bit in the middle."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 64
    return bytes(changed)


def cut(data: bytes) -> bytes:
    """Cuts the second half off."""
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    """Deletes the content."""
    return b""


def zeros(data: bytes) -> bytes:
    """Overwrites the content with zeros, as a file system may after a power failure."""
    return bytes(len(data))
