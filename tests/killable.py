"""Runs `mmjax` so that it is killed at an exact step: `python tests/killable.py train --config=… --workdir=…`.

The variable MMJAX_TEST_KILL says when; everything else is what the command does anyway.

    step:5      SIGKILL after step 5 and all that belongs to it
    begin:8     SIGKILL as soon as the temporary folder of checkpoint 8 exists
    commit:8    SIGKILL when all of checkpoint 8 is written and gets its final name next
    term:13     SIGTERM after step 13
    hold:23     waits 0.1 s after each step, and after step 23 until it is killed
    pace:0.01   waits so many seconds after each step, and kills nothing

With MMJAX_TEST_NOTES=FILE the process writes a line "STEP ROW ID" for each example that it trains on.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time

from mmjax.training import checkpoint, loop

WHEN, _, NUMBER = os.environ["MMJAX_TEST_KILL"].partition(":")
PATIENCE = 240


def kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def after_each_step() -> None:
    original = checkpoint.CheckpointHook.after_step

    def after_step(self, loop):
        if (WHEN, loop.step) == ("term", int(float(NUMBER))):
            # The signal comes at any time; its handler runs before the next operation.
            kill(signal.SIGTERM)
        original(self, loop)
        if (WHEN, loop.step) == ("step", int(float(NUMBER))):
            kill()
        if WHEN == "pace":
            time.sleep(float(NUMBER))
        if WHEN == "hold":
            time.sleep(PATIENCE if loop.step == int(NUMBER) else 0.1)

    checkpoint.CheckpointHook.after_step = after_step


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
    """Holds the renaming that makes the checkpoint valid, and kills before it."""

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

        left = found()  # by an earlier process that was killed

        def watch():
            while True:
                # A folder may vanish between the listing and the look at it.
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
    else:
        after_each_step()
    sys.exit(main())
