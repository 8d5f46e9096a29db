"""Runners of preparation tasks: local processes, or a cluster through Apache Beam."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mmjax.data.worker_processes import parent_imports
from mmjax.errors import UserError
from mmjax.host.cores import visible_cores


class Runner(Protocol):
    """Runs independent tasks. Tasks write their results to files, so finished tasks need not run again."""

    def run(self, function: Callable[..., None], calls: Sequence[tuple], advance: Callable[[], None]) -> None:
        """Calls `function(*arguments)` for each item of `calls`, in any order, and `advance()` after each."""


class Local(Runner):
    """Runs tasks in local processes; with one worker, in the current process.

    At most two tasks per worker are queued, so memory does not grow with the number of tasks.

    Args:
      num_workers: number of processes.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., None], calls: Sequence[tuple], advance: Callable[[], None]) -> None:
        if self._num_workers == 1 or len(calls) < 2:
            for arguments in calls:
                function(*arguments)
                advance()
            return
        running: set[concurrent.futures.Future] = set()
        try:
            for arguments in calls:
                with parent_imports():
                    running.add(self._executor().submit(function, *arguments))
                if len(running) >= 2 * self._num_workers:
                    running = self._collect(running, advance)
            while running:
                running = self._collect(running, advance)
        except concurrent.futures.process.BrokenProcessPool:
            remedy = "run the same command again to resume, with a smaller --workers if memory ran out"
            raise UserError("--workers", "a worker process was killed", remedy) from None

    def _collect(self, running: set, advance: Callable[[], None]) -> set:
        """Waits for at least one task and returns the unfinished ones. Raises the exception of a failed task."""
        done, unfinished = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            future.result()
            advance()
        return unfinished

    def _executor(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            # Spawn, since a fork of a process with threads (JAX, readers) can deadlock.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._num_workers, context, initializer=_limit_threads)
        return self._pool

    def close(self) -> None:
        """Stops the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class Beam(Runner):
    """Runs tasks on Apache Beam. All workers must see the source and the output under the same paths.

    Args:
      runner: name of a Beam runner.
      options: other pipeline options, as flags.

    Raises:
      UserError: if apache-beam is not installed or has no such runner.
    """

    def __init__(self, runner: str, options: Sequence[str] = ()):
        try:
            import apache_beam
        except ImportError:
            problem = f"{runner!r} needs the package apache-beam"
            raise UserError("--runner", problem, "pip install 'mmjax[beam]'") from None
        try:
            apache_beam.runners.runner.create_runner(runner)
        except ValueError as error:
            raise UserError("--runner", f"Apache Beam has no runner {runner!r}", f"Beam reports: {error}") from None
        self._beam, self._runner, self._options = apache_beam, runner, list(options)

    def run(self, function: Callable[..., None], calls: Sequence[tuple], advance: Callable[[], None]) -> None:
        beam = self._beam
        options = beam.options.pipeline_options.PipelineOptions([f"--runner={self._runner}", *self._options])
        with beam.Pipeline(options=options) as pipeline:
            work = pipeline | beam.Create(list(calls), reshuffle=True)
            _ = work | beam.Map(lambda arguments: function(*arguments))
        for _ in calls:
            advance()

    def close(self) -> None:
        """Does nothing: each pipeline ends with its run."""


@contextlib.contextmanager
def make_runner(name: str, workers: int) -> Iterator[Any]:
    """Opens a runner, and closes it at the end.

    Args:
      name: "local", or a Beam runner such as DirectRunner or DataflowRunner.
      workers: number of local processes, 0 for one per visible core.
    """
    runner = Local(workers or visible_cores()) if name in ("", "local") else Beam(name)
    try:
        yield runner
    finally:
        runner.close()


def _limit_threads() -> None:
    """Limits BLAS and OpenMP to one thread per worker, since the workers occupy all cores."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
