"""Trains several runs, one after another or in parallel processes that divide the CPU cores among them."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mmjax.data.worker_processes import parent_imports
from mmjax.errors import Restart
from mmjax.files import load_json
from mmjax.runs.run import train

_PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process receives when its parent exits."""

RunKey = tuple[str, int]
"""Name and seed of a run."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A plain config and the workdir to train it in."""

    recipe: Mapping[str, Any]
    workdir: pathlib.Path

    def result(self) -> dict[str, Any] | None:
        """Reads result.json. Returns None if the run is not finished.

        Raises:
          UserError: if result.json is not JSON.
        """
        path = self.workdir / "result.json"
        return load_json(path, "remove it to resume the run") if path.is_file() else None


def train_all(runs: Mapping[RunKey, PlannedRun], jobs: int, console: Console) -> dict[RunKey, dict[str, Any]]:
    """Trains the runs that have no result yet.

    With several jobs, each process is pinned to its own cores to avoid contention, and writes its output to a text file
    beside the workdir. Accelerators are not partitioned between jobs, so use one job on a GPU or TPU.

    Args:
      runs: {(name, seed): run}.
      jobs: number of parallel runs.
      console: console for progress, and for the output of the runs if `jobs` is 1.

    Returns:
      {(name, seed): contents of its result.json}.
    """
    results = {key: run.result() for key, run in runs.items()}
    for key, result in results.items():
        if result is not None:
            location = f"{runs[key].workdir}, at commit {result['git_commit']}"
            console.print(f"{_title(key)}: already trained, in {location}", highlight=False)
    pending = {key: run for key, run in runs.items() if results[key] is None}
    if jobs == 1:
        for key, run in pending.items():
            console.rule(_title(key))
            results[key] = train(run.recipe, run.workdir, console)
    else:
        results |= _train_in_parallel(pending, jobs, console)
    return {key: result for key, result in results.items() if result is not None}


def _title(key: RunKey) -> str:
    return f"{key[0]} seed {key[1]}".strip()


def _train_in_parallel(runs: Mapping[RunKey, PlannedRun], jobs: int, console: Console) -> dict[RunKey, dict[str, Any]]:
    # Runs share prepared data through the cache, and wait there for data that another run is preparing.
    cores = sorted(os.sched_getaffinity(0))
    core_sets = [cores[index::jobs] for index in range(min(jobs, len(cores)))]
    context = multiprocessing.get_context("spawn")
    free_core_sets = context.Queue()
    for core_set in core_sets:
        free_core_sets.put(core_set)
    results = {}
    pool = concurrent.futures.ProcessPoolExecutor(len(core_sets), context, _init_worker, (free_core_sets,))
    with parent_imports(), pool, Progress(console=console) as progress:
        bar = progress.add_task(f"{len(runs)} runs, {len(core_sets)} at a time", total=len(runs))
        futures = {pool.submit(_train, run): key for key, run in runs.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                results[futures[future]] = future.result()
                progress.advance(bar)
        except concurrent.futures.process.BrokenProcessPool:
            problem = "a training process was killed, after SIGKILL often for lack of memory: lower --jobs"
            raise Restart(f"{problem}; run the same command to resume") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _init_worker(free_core_sets: Any) -> None:
    # If the command is killed, its runs must stop too: a restarted command would train in the same workdirs.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Set before JAX starts its thread pool, which has one thread per visible core.
    os.sched_setaffinity(0, free_core_sets.get())


def _train(run: PlannedRun) -> dict[str, Any]:
    run.workdir.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    with run.workdir.with_suffix(".txt").open("a") as file:
        try:
            return train(run.recipe, run.workdir, Console(file=file, width=120))
        except (SystemExit, Restart, KeyboardInterrupt):
            if os.getppid() != parent:
                # The command has exited, so the pool would never stop this worker.
                os._exit(1)
            raise
