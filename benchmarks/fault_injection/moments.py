"""Moments of a run at which it waits, so that a fault strikes exactly there.

    connect       before the processes connect
    start         before the checks of the config
    lock          after the workdir is locked, before its first files are written
    restore       before a checkpoint is read
    compile       between the lowering and the compilation of the train step
    step:5        after step 5, before a checkpoint of it
    saved:8       after the save of step 8 has begun, while it is written
    commit:8      when checkpoint 8 is complete but for its final name
    evaluate:2    after the first batch of the second evaluation in this process
    result        before `result.json` is written

The process creates the file `reached` and waits for the file `go`. Before, except for `saved` and `commit`, it waits
for checkpoints that are being written, so that it is known at which step a killed run resumes.
"""

from __future__ import annotations

import functools
import os
import pathlib
import time
from typing import Any

import jax

from mmjax import processes
from mmjax.experiment import Experiment
from mmjax.runs import run
from mmjax.training.checkpoint import CheckpointHook, Checkpoints


def pause_at(moment: str, signs: str) -> None:
    """Installs one pause in this process.

    Args:
      moment: one of the moments above.
      signs: folder of the files `reached` and `go`.
    """
    name, _, number = moment.partition(":")
    opened: list[Checkpoints] = []
    if name not in ("saved", "commit"):
        original = Checkpoints.__init__

        def init(self, *args, **options):
            original(self, *args, **options)
            opened.append(self)

        Checkpoints.__init__ = init
    _INSTALL[name](_Pause(pathlib.Path(signs), opened), int(number or 0))


class _Pause:
    def __init__(self, folder: pathlib.Path, opened: list[Checkpoints]):
        self.folder, self.opened, self.done = folder, opened, False

    def __call__(self) -> None:
        if self.done:
            return
        self.done = True
        for checkpoints in self.opened:
            checkpoints.wait()
        (self.folder / "reached").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.01)


def _before(owner: Any, name: str, pause: _Pause) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def paused(*args, **options):
        pause()
        return original(*args, **options)

    setattr(owner, name, paused)


def _step(pause: _Pause, number: int) -> None:
    original = CheckpointHook.after_step

    def after_step(self, loop):
        if loop.step == number:
            pause()
        original(self, loop)

    CheckpointHook.after_step = after_step


def _saved(pause: _Pause, number: int) -> None:
    original = Checkpoints.save

    def save(self, step, *args):
        original(self, step, *args)
        if step == number:
            pause()

    Checkpoints.save = save


def _commit(pause: _Pause, number: int) -> None:
    for function in ("rename", "replace"):
        original = getattr(os, function)

        def held(source, target, *rest, original=original, **options):
            name = pathlib.Path(source).name
            if name.startswith(f"{number}.") and "tmp" in name:
                pause()
            return original(source, target, *rest, **options)

        setattr(os, function, held)


def _evaluate(pause: _Pause, number: int) -> None:
    original, calls = Experiment.evaluation_batches, []

    def evaluation_batches(self, split):
        calls.append(split)
        for batch in original(self, split):
            yield batch
            if len(calls) == number:
                pause()

    Experiment.evaluation_batches = evaluation_batches


def _compile(pause: _Pause, number: int) -> None:
    original = Experiment.compile_step

    def on_duration(event, seconds, **_):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            pause()

    def compile_step(self):
        jax.monitoring.register_event_duration_secs_listener(on_duration)
        return original(self)

    Experiment.compile_step = compile_step


def _result(pause: _Pause, number: int) -> None:
    original = run.write_json

    def write_json(path, value):
        if path.name == "result.json":
            pause()
        original(path, value)

    run.write_json = write_json


_INSTALL = {
    "connect": lambda pause, _: _before(processes, "initialize", pause),
    "start": lambda pause, _: _before(run, "Experiment", pause),
    "lock": lambda pause, _: _before(run, "write_config", pause),
    "restore": lambda pause, _: _before(Checkpoints, "restore", pause),
    "compile": _compile,
    "step": _step,
    "saved": _saved,
    "commit": _commit,
    "evaluate": _evaluate,
    "result": _result,
}
