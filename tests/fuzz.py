"""Fuzz test: wrong files, datasets, configs and command lines end in a record, a finding or one line.

    python tests/fuzz.py --count=3000 --seed=0
    python tests/fuzz.py --seconds=120 --only=files,archives
    python tests/fuzz.py --seed=0 --case=1234

Inputs are numbered; an input depends on the seed and its number only. Worker processes try them. An input fails if it
raises another error, uses more than `CPU_SECONDS` of processor time, waits longer than `WAIT_SECONDS`, holds more than
`MAX_BYTES` of memory, kills its process, or writes a file outside its folder. Exits with 1 if any input failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

CPU_SECONDS = 20.0
WAIT_SECONDS = 180.0
"""Wall time for an input, longer than `CPU_SECONDS` because other processes may use the cores."""

MAX_BYTES = 2 * 2**30
_START_SECONDS = 600.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Result:
    """Outcome of one input.

    Attributes:
      case: number of the input.
      target: name of its target.
      outcome: "accepted", "refused", or the failure.
      bytes: memory that it needed at most, in bytes.
    """

    case: int
    target: str
    outcome: str
    bytes: int = 0

    @property
    def failed(self) -> bool:
        """True if the outcome is a failure."""
        return self.outcome not in ("accepted", "refused")


def choose_target(seed: int, case: int, names: list[str]) -> tuple[str, Any]:
    """Returns the target of an input and its random generator."""
    import numpy as np

    from tests.fuzz_targets import TARGETS

    rng = np.random.default_rng([seed, case])
    shares = np.asarray([TARGETS[name][0] for name in names])
    return str(rng.choice(names, p=shares / shares.sum())), rng


def try_case(seed: int, case: int, names: list[str], root: pathlib.Path) -> Result:
    """Tries one input in this process."""
    from tests.fuzz_targets import SECRET_SIZE, TARGETS

    target, rng = choose_target(seed, case, names)
    folder = root / f"case_{case}"
    folder.mkdir()
    if not (root / "secret.png").exists():
        import PIL.Image

        PIL.Image.linear_gradient("L").resize(SECRET_SIZE[::-1]).save(root / "secret.png")
    before, start = _snapshot(root), time.process_time()
    _reset_peak()
    try:
        inner = folder / "inner"
        inner.mkdir()
        shutil.copy(root / "secret.png", folder / "secret.png")
        outcome = TARGETS[target][1](rng, inner)
        after = {path.name for path in folder.iterdir()} - {"inner", "secret.png"}
        if target != "commands" and (after or _snapshot(root) != before):
            outcome = f"wrote outside of its folder: {sorted(after)}"
    except Exception as error:
        frames = [f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
        outcome = f"{type(error).__name__}: {str(error)[:300]} at {' > '.join(frames)}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (seconds := time.process_time() - start) > CPU_SECONDS:
        outcome = f"took {seconds:.0f} s"
    peak = _peak_bytes()
    return Result(case, target, f"held {peak / 2**30:.1f} GiB" if peak > MAX_BYTES else outcome, peak)


def _snapshot(root: pathlib.Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Peak of the resident memory since `_reset_peak`."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def work(connection: Any, seed: int, names: list[str], root: pathlib.Path) -> None:
    """Tries the inputs whose numbers arrive, in a process of its own."""
    # Messages of decoders written in C.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))
    connection.send(None)
    # Ends when the parent process does.
    with contextlib.suppress(EOFError):
        while True:
            connection.send(try_case(seed, connection.recv(), names, root))


class Worker:
    """A process that tries inputs, replaced when it dies or hangs."""

    def __init__(self, seed: int, names: list[str], root: pathlib.Path):
        self.arguments, self.root = (seed, names), root
        self.start()

    def start(self) -> None:
        """Starts the process."""
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.root))
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *self.arguments, self.folder))
        self.process.start()
        other.close()
        self.case: int | None = None
        self.since, self.cpu_before = time.monotonic(), 0.0

    def send(self, case: int) -> None:
        """Gives the process an input."""
        self.case, self.since, self.cpu_before = case, time.monotonic(), self.cpu_seconds
        self.connection.send(case)

    def stop(self) -> None:
        """Kills the process."""
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the process so far."""
        try:
            fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self.cpu_before
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def problem(self) -> str:
        """Returns why the process must be replaced, "" if it need not."""
        waited = time.monotonic() - self.since
        if self.case is None:
            return "did not start" if waited > _START_SECONDS else ""
        if (used := self.cpu_seconds - self.cpu_before) > 1.5 * CPU_SECONDS:
            return f"hung after {used:.0f} s of processor time"
        return f"hung for {waited:.0f} s" if waited > WAIT_SECONDS else ""


def fuzz(seed: int, count: int, seconds: float, names: list[str], workers: int, root: pathlib.Path) -> list[Result]:
    """Tries inputs until `count` or `seconds` is reached; 0 means no limit."""
    results: list[Result] = []
    pool = [Worker(seed, names, root) for _ in range(workers)]
    following, end = 0, time.monotonic() + seconds if seconds else float("inf")
    try:
        while any(worker.case is not None for worker in pool) or following < count:
            ready = multiprocessing.connection.wait([worker.connection for worker in pool], timeout=1.0)
            for index, worker in enumerate(pool):
                problem = worker.problem()
                if worker.connection in ready:
                    try:
                        if (result := worker.connection.recv()) is not None:
                            _add(results, result)
                    except (EOFError, OSError):
                        worker.process.join()
                        problem = f"killed its process, exit code {worker.process.exitcode}"
                    else:
                        worker.case = None
                        if following < count and time.monotonic() < end:
                            worker.send(following)
                            following += 1
                        continue
                if problem:
                    if worker.case is None:
                        raise RuntimeError(f"a worker process {problem}")
                    _add(results, Result(worker.case, choose_target(seed, worker.case, names)[0], problem))
                    worker.stop()
                    pool[index] = Worker(seed, names, root)
            if time.monotonic() >= end:
                count = following
    finally:
        for worker in pool:
            worker.stop()
    return sorted(results, key=lambda result: result.case)


def _add(results: list[Result], result: Result) -> None:
    results.append(result)
    if result.failed:
        print(f"FAILED case {result.case} ({result.target}): {result.outcome}", flush=True)
    elif len(results) % 100 == 0:
        print(f"{len(results):,} inputs", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=0, help="number of inputs (default: 3000, or no limit with --seconds)"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="time limit; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated targets")
    parser.add_argument("--case", type=int, default=None, help="number of a single input to try in this process")
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    from tests.fuzz_targets import TARGETS, write_templates

    names = options.only.split(",") if options.only else list(TARGETS)
    with tempfile.TemporaryDirectory(prefix="fuzz_") as root:
        (templates := pathlib.Path(root, "templates")).mkdir()
        write_templates(templates)
        if options.case is not None:
            (cases := pathlib.Path(root, "cases")).mkdir()
            result = try_case(options.seed, options.case, names, cases)
            print(result)
            return int(result.failed)
        count = options.count or (10**9 if options.seconds else 3000)
        started = time.monotonic()
        results = fuzz(options.seed, count, options.seconds, names, options.workers, pathlib.Path(root))
    failures = [result for result in results if result.failed]
    for target in names:
        outcomes = collections.Counter("failed" if r.failed else r.outcome for r in results if r.target == target)
        print(
            f"{target:12} {sum(outcomes.values()):6,}  " + ", ".join(f"{n:,} {o}" for o, n in sorted(outcomes.items()))
        )
    peak = max((result.bytes for result in results), default=0) / 2**30
    seconds = time.monotonic() - started
    print(f"{len(results):,} inputs, {len(failures):,} failures, {peak:.1f} GiB at most, {seconds:.0f} s")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
