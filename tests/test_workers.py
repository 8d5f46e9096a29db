"""Number of data-loading processes, their imports, and detection of stopped ones."""

import os
import pathlib
import subprocess
import sys

import pytest

from mmjax.data import workers
from mmjax.data.workers import available_bytes, max_workers, visible_cores, worker_count

GIB = 2**30
ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("cores", "free", "batch", "count"),
    [
        # Two cores stay free; memory is ample.
        (96, 400 * GIB, 40 * 2**20, 94),
        (2, 400 * GIB, 2**20, 0),
        (1, 400 * GIB, 2**20, 0),
        # Half of 8 GiB; each worker needs 600 MiB and two batches of 200 MiB.
        (96, 8 * GIB, 200 * 2**20, 4),
        # Not enough memory for a single worker.
        (96, GIB, 2**20, 0),
    ],
)
def test_cores_and_half_of_the_memory_are_the_limit(cores, free, batch, count):
    assert max_workers(cores, free, batch, prefetch=4) == count


def test_few_workers_make_more_batches_ahead_each():
    # Two workers with 600 MiB and three batches each fit into 4 GiB; with four more batches each they do not.
    assert max_workers(4, 8 * GIB, 480 * 2**20, prefetch=4) == 2
    assert max_workers(4, 8 * GIB, 480 * 2**20, prefetch=12) == 0


def test_a_step_on_the_cpu_keeps_all_cores(monkeypatch):
    monkeypatch.setattr(workers, "visible_cores", lambda: 16)
    monkeypatch.setattr(workers, "available_bytes", lambda: 64 * GIB)
    assert worker_count(2**20, 4, "cpu") == 0 and worker_count(2**20, 4, "tpu") == 14


def test_this_machine_has_cores_and_memory():
    assert visible_cores() >= 1 and 0 < available_bytes() < 2**50


BESIDE_A_CLONE = """
import importlib.machinery, multiprocessing, os, pathlib, signal, sys

class Editable:
    # Finders of editable installs come after the search of sys.path.
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [ROOT]) if name == "mmjax" else None

ROOT = os.environ["ROOT"]
sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Editable)

def main():
    from mmjax.data import worker_processes
    from mmjax.data.pipeline import Pipeline
    from mmjax.datasets import Synthetic
    from mmjax.modalities import MODALITIES

    sys.path.append(os.getcwd())
    worker_processes.STOPPED_SECONDS = 1.0
    modalities = {"text": MODALITIES["text"](MODALITIES["text"].Config())}
    batches = Pipeline(Synthetic(Synthetic.Config()), modalities, workers=1, prefetch=1).train_batches("train", 4)
    print("ids", next(batches).ids.tolist(), flush=True)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        for _ in range(1000):
            next(batches)
    except RuntimeError as error:
        print("error", error)
    batches.close()

if __name__ == "__main__":
    sys.path = [entry for entry in sys.path if entry and not (pathlib.Path(entry) / "mmjax").exists()]
    main()
"""


def test_processes_import_what_their_parent_imports_and_stopped_ones_are_found(tmp_path):
    # A recipe beside a clone: the folder mmjax is not a package, and random.py shadows the standard library's.
    (tmp_path / "mmjax").mkdir()
    (tmp_path / "random.py").write_text("raise SystemExit('imported from the current folder')")
    script = tmp_path.with_name("script.py")
    script.write_text(BESIDE_A_CLONE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"ROOT": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ids [") and len(lines) == 2
    assert lines[1].startswith("error a data-loading process ended with exit code -9")
