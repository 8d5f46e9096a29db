"""Many runs, one after another or several at a time, each in a process with its share of the processor's cores."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mmjax.runs.run import train
from mmjax.errors import UserError

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent ends."""

Name = tuple[str, int]
"""What a run is called, and its seed."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A recipe of plain values, and where it is trained."""

    recipe: Mapping[str, Any]
    workdir: pathlib.Path

    def result(self) -> dict[str, Any] | None:
        """What result.json holds, or None before the end of the run."""
        path = self.workdir / "result.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError as error:
            raise UserError(str(path), f"is not JSON: {error}", "remove it, and the run goes on") from error


def train_all(wanted: Mapping[Name, PlannedRun], jobs: int, console: Console) -> dict[Name, dict[str, Any]]:
    """Trains what has no result yet.

    With several jobs each process sees its own cores only, so that they do not take turns, and writes what a run prints
    to a file beside its workdir. Accelerators are not shared out: there, leave it at one job.

    Args:
      wanted: {name: run}.
      jobs: runs at a time.

    Returns:
      {name: what its result.json holds}.
    """
    done = {name: run.result() for name, run in wanted.items()}
    for name, result in done.items():
        if result is not None:
            where = wanted[name].workdir
            console.print(
                f"{_title(name)}: trained already, at commit {result['git_commit']}, in {where}", highlight=False
            )
    left = {name: run for name, run in wanted.items() if done[name] is None}
    if jobs == 1:
        for name, run in left.items():
            console.rule(_title(name))
            done[name] = train(run.recipe, run.workdir, console)
    else:
        done |= _together(left, jobs, console)
    return {name: result for name, result in done.items() if result is not None}


def _title(name: Name) -> str:
    return f"{name[0]} seed {name[1]}".strip()


def _together(left: Mapping[Name, PlannedRun], jobs: int, console: Console) -> dict[Name, dict[str, Any]]:
    # What is prepared for one run may serve the next: they find it, or wait for it, in the cache.
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[number::jobs] for number in range(min(jobs, len(cores)))]
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for share in shares:
        free.put(share)
    found = {}
    pool = concurrent.futures.ProcessPoolExecutor(len(shares), context, _take_cores, (free,))
    with pool, Progress(console=console) as progress:
        bar = progress.add_task(f"{len(left)} runs, {len(shares)} at a time", total=len(left))
        futures = {pool.submit(_train, run): name for name, run in left.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                found[futures[future]] = future.result()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _take_cores(free: Any) -> None:
    # Who is killed takes its runs along: started again, it would train in the same workdirs beside them.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Before JAX starts its threads, of which there is one for each core that it sees.
    os.sched_setaffinity(0, free.get())


def _train(run: PlannedRun) -> dict[str, Any]:
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    with run.workdir.with_suffix(".txt").open("a") as file:
        try:
            return train(run.recipe, run.workdir, Console(file=file, width=120))
        except SystemExit:
            if os.getppid() != parent:
                # The signal came because the command is gone, and nobody else would end this process.
                os._exit(1)
            raise
