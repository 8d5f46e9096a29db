"""Mutation test: breaks a copy of the package in one place at a time and prints whether the tests fail.

    python tests/mutate.py                  # all mutations
    python tests/mutate.py data/ dropout    # those whose file or name contains one of the words
    python tests/mutate.py --results=FILE   # appends each verdict to FILE, and skips those that FILE already holds

The tests of a mutation first have to pass on the unchanged copy. Each run of tests is a process of its own, forked from
one that has imported the libraries but neither the package nor the tests, which takes most of the start.
Exits with 1 if a mutation survives that gives no reason.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import py_compile
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT = 300
"""Seconds for the tests of one mutation."""

LIBRARIES = (
    "pytest", "jax", "jax.experimental.pallas", "flax.nnx", "optax", "orbax.checkpoint", "grain", "clu.metrics",
    "ml_collections", "beartype", "hypothesis", "tensorflow_datasets", "sklearn.metrics",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutation:
    """Replaces `before` with `after` in one file of the package; `tests` are pytest arguments that must then fail.

    `reason` explains why no test can distinguish the two, where none can.
    """

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    slow: bool = True
    reason: str = ""

    def __str__(self):
        return self.name


class Copy:
    """Copy of the package and its tests; the original is never changed."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("mmjax", "tests", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        # Byte code is checked by the hash of its source: two versions of a file may have one length and one time.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder, quiet=1, invalidation_mode=mode)

    @contextlib.contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """Applies a mutation, and restores the file afterwards."""
        path = self.folder / "mmjax" / mutation.file
        text = path.read_text()
        changed = text.replace(mutation.before, mutation.after)
        compile(changed, path, "exec")
        path.write_text(changed)
        try:
            yield
        finally:
            path.write_text(text)

    def run(self, tests: Sequence[str], programs: pathlib.Path) -> tuple[int | None, str]:
        """Runs pytest on the copy in a forked process.

        Args:
          tests: arguments of pytest.
          programs: folder of JAX's compilation cache.

        Returns:
          The exit status of pytest, None after `TIMEOUT` seconds, and its output.
        """
        output = self.folder / "output.txt"
        child = os.fork()
        if not child:
            os.setsid()
            try:
                self._test(tests, programs, output)
            finally:
                os._exit(70)
        deadline, status = time.monotonic() + TIMEOUT, None
        try:
            while status is None and time.monotonic() < deadline:
                finished, code = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if finished else None
                time.sleep(0.05)
        finally:
            if status is None:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
        return status, output.read_text(errors="replace")

    def _test(self, tests: Sequence[str], programs: pathlib.Path, output: pathlib.Path) -> None:
        descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(self.folder)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("mmjax", "tests")]:
            del sys.modules[name]
        ours = (ROOT, ROOT / "tests")
        sys.path[:] = [str(self.folder), *(path for path in sys.path if pathlib.Path(path).resolve() not in ours)]
        sys.dont_write_bytecode = True
        os.environ.update(
            PYTHONPATH=str(self.folder), PYTHONDONTWRITEBYTECODE="1", JAX_COMPILATION_CACHE_DIR=str(programs)
        )
        import jax
        import pytest

        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        status = pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests])
        if not pathlib.Path(importlib.import_module("mmjax").__file__).is_relative_to(self.folder):
            status = 71
        sys.stdout.flush()
        os._exit(int(status))


def verdict(unchanged: int | None, mutated: int | None) -> str:
    """Returns the verdict on the exit statuses of the tests without and with a mutation."""
    # 1 means that tests failed; 2 and more that they could not run, which would notice nothing.
    if unchanged != 0 or mutated not in (0, 1, None):
        return "not tested"
    return {0: "survived", 1: "caught", None: "timed out"}[mutated]


def judge(
    mutations: Sequence[Mutation], results: pathlib.Path | None = None, check_unchanged: bool = True
) -> dict[str, str]:
    """Returns `{name: verdict}`, and prints each as it is found.

    Args:
      mutations: mutations to try.
      results: file that keeps the verdicts, or None.
      check_unchanged: run the tests on the unchanged copy first; else they count as passing there.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    lines = results.read_text().splitlines() if results and results.exists() else []
    verdicts = {row["name"]: row["verdict"] for row in map(json.loads, lines)}
    unchanged: dict[tuple[str, ...], int | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy, programs = Copy(pathlib.Path(folder, "copy").resolve()), pathlib.Path(folder, "programs")
        # Together, mutations with the same tests share what they compile.
        for mutation in sorted(mutations, key=lambda mutation: mutation.tests):
            if mutation.name in verdicts:
                continue
            output = ""
            if mutation.tests not in unchanged:
                run = copy.run if check_unchanged else lambda *_: (0, "")
                unchanged[mutation.tests], output = run(mutation.tests, programs)
            began, status = time.monotonic(), None
            if unchanged[mutation.tests] == 0:
                with copy.mutated(mutation):
                    status, output = copy.run(mutation.tests, programs)
            result = verdicts[mutation.name] = verdict(unchanged[mutation.tests], status)
            print(f"{result:10} {time.monotonic() - began:4.0f} s  {mutation.file}: {mutation.name}", flush=True)
            if result == "not tested":
                print(output, flush=True)
            if results:
                with results.open("a") as file:
                    file.write(json.dumps({"name": mutation.name, "verdict": result}) + "\n")
    return verdicts


def main(arguments: list[str]) -> int:
    """Tries the mutations whose file or name contains one of the words, by default all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names or files")
    parser.add_argument("--results", type=pathlib.Path, help="file of verdicts, one JSON object a line")
    parser.add_argument("--names", type=pathlib.Path, help="file with the exact names to try, one a line")
    parser.add_argument("--passing", action="store_true", help="skip the tests of the unchanged copy, which pass")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    from tests.test_mutations import MUTATIONS

    chosen = [m for m in MUTATIONS if not options.words or any(word in f"{m.file} {m.name}" for word in options.words)]
    if options.names:
        names = options.names.read_text().splitlines()
        chosen = [mutation for mutation in chosen if mutation.name in names]
    began = time.monotonic()
    verdicts = judge(chosen, options.results, not options.passing)
    survivors = [mutation for mutation in chosen if verdicts[mutation.name] != "caught"]
    print(f"\ncaught {len(chosen) - len(survivors)} of {len(chosen)} in {(time.monotonic() - began) / 60:.1f} minutes")
    for mutation in survivors:
        reason = mutation.reason or "NO REASON"
        print(f"{verdicts[mutation.name]:10} {mutation.file}: {mutation.name} ({reason})")
    return int(not chosen or any(not mutation.reason for mutation in survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
