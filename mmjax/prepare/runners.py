"""Where the work is done: in processes of this machine, or on a cluster by Apache Beam."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from mmjax.errors import UserError
from mmjax.host.cores import visible_cores


class Runner(Protocol):
    """Calls a function many times. Each call's result is a file, so that none is needed twice."""

    def run(self, function: Callable[..., None], calls: Sequence[tuple], advance: Callable[[], None]) -> None:
        """Calls `function(*arguments)` for each of `calls`, in any order, and `advance` after each."""


class Local:
    """Processes of this machine; with one worker, this process itself.

    As many calls wait as there are workers, so that memory does not grow with the work.
    """

    def __init__(self, workers: int):
        self._workers = workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., None], calls: Sequence[tuple], advance: Callable[[], None]) -> None:
        if self._workers == 1 or len(calls) < 2:
            for arguments in calls:
                function(*arguments)
                advance()
            return
        remaining = iter(calls)
        running: set[concurrent.futures.Future] = set()
        try:
            for arguments in remaining:
                running.add(self._executor().submit(function, *arguments))
                if len(running) >= 2 * self._workers:
                    running = self._collect(running, advance)
            while running:
                running = self._collect(running, advance)
        except concurrent.futures.process.BrokenProcessPool:
            remedy = "give the same command again to go on, with a smaller --workers if memory ran out"
            raise UserError("--workers", "a worker process was killed", remedy) from None

    def _collect(self, running: set, advance: Callable[[], None]) -> set:
        done, left = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            future.result()
            advance()
        return left

    def _executor(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: this process may hold the threads of JAX and of readers.
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, initializer=_one_thread)
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class Beam:
    """Apache Beam, with any of its runners; all workers must see the source and the output under the same names."""

    def __init__(self, runner: str, options: Sequence[str] = ()):
        try:
            import apache_beam
        except ImportError:
            problem = f"{runner!r} needs the package apache-beam"
            raise UserError("--runner", problem, "pip install 'mmjax[beam]'") from None
        try:
            apache_beam.runners.runner.create_runner(runner)
        except ValueError as error:
            raise UserError("--runner", f"Beam has no {runner!r}", f"Beam says: {error}") from None
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
        pass


@contextlib.contextmanager
def make_runner(name: str, workers: int) -> Iterator[Any]:
    """The runner of a name: "local", or one of Beam's, such as DirectRunner or DataflowRunner."""
    runner = Local(workers or visible_cores()) if name in ("", "local") else Beam(name)
    try:
        yield runner
    finally:
        runner.close()


def _one_thread() -> None:
    """The workers fill the cores already."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
