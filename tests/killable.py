"""Runs `mmjax` and kills it at an exact step: `python tests/killable.py train --config=… --workdir=…`.

The variable MMJAX_TEST_KILL selects the moment; otherwise the command is unchanged.

    step:5      SIGKILL after step 5 and its logging
    begin:8     SIGKILL as soon as the temporary folder of checkpoint 8 exists
    commit:8    SIGKILL when checkpoint 8 is written, just before it gets its final name
    term:13     SIGTERM after step 13
    int:13      SIGINT, as by Ctrl-C, after step 13
    evaluate:10 SIGTERM after the first batch of the evaluation of step 10
    hang:input  waits for ever for the fifth batch; also hang:step, hang:evaluation and hang:save
    hold:23     sleeps 0.1 s after each step, and after step 23 until it is killed
    pace:0.05   sleeps this many seconds after each step, so that another process can kill it

With MMJAX_TEST_NOTES=FILE the process writes a line "STEP ROW ID" for each training example.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import sys
import threading
import time

from mmjax.data import pipeline
from mmjax.evaluation import evaluator
from mmjax.training import checkpoint, loop
from mmjax.training.hooks import log

WHEN, _, NUMBER = os.environ["MMJAX_TEST_KILL"].partition(":")
PATIENCE = 240
SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT}


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def after_each_step() -> None:
    original = checkpoint.CheckpointHook.after_step

    def after_step(self, loop):
        if WHEN in SIGNALS and loop.step == int(NUMBER):
            # The handler runs before the next operation.
            kill(SIGNALS[WHEN])
        original(self, loop)
        if (WHEN, loop.step) == ("step", int(float(NUMBER))):
            kill()
        if WHEN == "pace":
            time.sleep(float(NUMBER))
        if WHEN == "hold":
            time.sleep(PATIENCE if loop.step == int(NUMBER) else 0.1)

    checkpoint.CheckpointHook.after_step = after_step


def in_evaluation() -> None:
    original = evaluator.Evaluator.run

    def run(self, parameters, split, without=(), *, step=0):
        if step == int(NUMBER):
            after_batch = self.after_batch

            def signal_and_continue():
                kill(signal.SIGTERM)
                after_batch()
                raise AssertionError("the evaluation goes on")

            self.after_batch = signal_and_continue
        return original(self, parameters, split, without, step=step)

    evaluator.Evaluator.run = run


def hang_in_phase() -> None:
    owner, name = {
        "input": (pipeline.BatchIterator, "__next__"),
        "step": (log.LogHook, "after_step"),
        "evaluation": (evaluator.Evaluator, "run"),
        "save": (checkpoint.Checkpoints, "save"),
    }[NUMBER]
    original, calls = getattr(owner, name), itertools.count(1)

    def hang(*arguments, **options):
        if NUMBER in ("evaluation", "save") or next(calls) == 5:
            time.sleep(1000)
        return original(*arguments, **options)

    setattr(owner, name, hang)


def note_batches(path: pathlib.Path) -> None:
    original = loop.Loop.run

    def run(self, train_step, batches):
        with path.open("a") as notes:

            def noted(state, batch):
                for shard in batch.ids.addressable_shards:
                    for row, number in enumerate(shard.data, shard.index[0].start or 0):
                        print(self.step, row, int(number), file=notes)
                notes.flush()
                return train_step(state, batch)

            return original(self, noted, batches)

    loop.Loop.run = run


def in_checkpoint() -> None:
    """Intercepts the rename that commits a checkpoint, and kills the process before it."""

    def is_it(name) -> bool:
        return pathlib.Path(name).name.startswith(f"{NUMBER}.") and "tmp" in pathlib.Path(name).name

    for function in ("rename", "replace"):
        original = getattr(os, function)

        def held(source, target, *rest, original=original, **options):
            if is_it(source):
                if WHEN == "commit":
                    kill()
                time.sleep(PATIENCE)
            return original(source, target, *rest, **options)

        setattr(os, function, held)

    if WHEN == "begin":
        workdir = next(word.partition("=")[2] for word in sys.argv if word.startswith("--workdir="))

        def found():
            folder = pathlib.Path(workdir, "checkpoints")
            return {child.stat().st_ino for child in folder.glob("*") if is_it(child)}

        left = found()  # written by an earlier process that was killed

        def watch():
            while True:
                # A folder may vanish between the listing and `stat`.
                with contextlib.suppress(FileNotFoundError):
                    if found() - left:
                        kill()
                time.sleep(0.001)

        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    from mmjax.__main__ import main

    if os.environ.get("MMJAX_TEST_NOTES"):
        note_batches(pathlib.Path(os.environ["MMJAX_TEST_NOTES"]))
    if WHEN in ("begin", "commit"):
        in_checkpoint()
    elif WHEN == "evaluate":
        in_evaluation()
    elif WHEN == "hang":
        hang_in_phase()
    else:
        after_each_step()
    sys.exit(main())
