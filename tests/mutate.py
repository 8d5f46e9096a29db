"""Mutation test: breaks a copy of the package in one place at a time and prints whether the tests fail.

    python tests/mutate.py                  # all mutations
    python tests/mutate.py data/ dropout    # those whose file or name contains one of the words

Exits with 1 if a mutation survives.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 280
"""Seconds for the tests of one mutation."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """Replaces `before` with `after` in one file of the package; `tests` are pytest arguments that must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    slow: bool = True

    def __str__(self):
        return self.name


class Copy:
    """Copy of the package and its tests; the original is never changed."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path | None = None):
        self.folder = folder
        for name in ("mmjax", "tests", "configs"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}
        if cache:
            self.environment["MMJAX_CACHE"] = str(cache)
        # Python's byte-code cache cannot distinguish two files of equal length written within one second.
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(self, tests: tuple[str, ...]) -> subprocess.CompletedProcess:
        """Runs pytest on the copy."""
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def mutated(self, mutation: Mutation) -> subprocess.CompletedProcess:
        """Runs the tests of a mutation on the mutated copy, and restores it."""
        path = self.folder / "mmjax" / mutation.file
        text = path.read_text()
        path.write_text(text.replace(mutation.before, mutation.after))
        try:
            return self.run(mutation.tests)
        finally:
            path.write_text(text)


def verdict(done: subprocess.CompletedProcess) -> str:
    """Returns "caught", "survived", or "not tested" if the tests could not run."""
    if done.returncode == 0:
        return "survived"
    # Exit code 1: tests failed. 2 and more: pytest could not run them, which proves nothing.
    failed = done.returncode == 1 and " failed" in done.stdout and " error" not in done.stdout.splitlines()[-1]
    return "caught" if failed else "not tested"


def main(words: list[str]) -> int:
    """Tries the mutations whose file or name contains one of `words`; all by default."""
    sys.path.insert(0, str(ROOT))
    from tests.test_mutations import MUTATIONS

    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.name}" for word in words)]
    found: dict[str, list[str]] = {"caught": [], "survived": [], "not tested": []}
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(pathlib.Path(folder, "copy"))
        for mutation in chosen:
            began = time.monotonic()
            result = verdict(copy.mutated(mutation))
            found[result].append(mutation.name)
            print(f"{result:10} {time.monotonic() - began:4.0f} s  {mutation.file}: {mutation.name}", flush=True)
    print(", ".join(f"{len(names)} {result}" for result, names in found.items()), f"of {len(chosen)}")
    return 0 if len(found["caught"]) == len(chosen) > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
