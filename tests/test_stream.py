"""A thousand batches with every option on: equal for any number of processes and workers, and after resuming.

pytest -n 0 -m slow tests/test_stream.py
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmjax.config import build
from mmjax.data.packing import Packing, PackingConfig
from mmjax.data.pipeline import Pipeline
from mmjax.data.sampling import FilterConfig, SamplingConfig
from mmjax.datasets import DATASETS, make_dataset
from mmjax.datasets.mixture import PartConfig
from mmjax.modalities.augmentation import AUGMENTATIONS
from tests.test_packing import MODALITIES, PACKING, Sizes

BATCHES, ROWS = 1000, 8


def stream(workers: int) -> Pipeline:
    """Two datasets, mixed by weights, filtered, packed, augmented, with modality dropout."""
    DATASETS["sizes"] = Sizes
    datasets = {"one": {"name": "sizes", "rename": {"picture": "image"}}, "two": {"name": "sizes", "size": 7}}
    dataset = make_dataset({"name": "mixture", "datasets": datasets}, PartConfig)[1]
    modalities = {"image": MODALITIES["picture"], **MODALITIES}
    augment = {
        "image": [make("image", "flip"), make("image", "affine")],
        "picture": [make("image", "crop"), make("image", "erase", probability=0.5)],
        "words": [make("text", "edit_words", delete=0.3)],
    }
    packing = PackingConfig(slots=PACKING.slots, budgets={"image": 14, **PACKING.budgets}, window=PACKING.window)
    return Pipeline(
        dataset,
        modalities,
        seed=3,
        workers=workers,
        packing=Packing(packing, modalities),
        sampling=build(SamplingConfig, {"weights": {"one": 3.0, "two": 1.0}}, "data.sampling"),
        filters={"words/bytes": FilterConfig(at_most=4.0)},
        modality_dropout={"image": 0.2, "picture": 0.2, "words": 0.3},
        augment=augment,
    )


def make(kind: str, name: str, **options):
    chosen = AUGMENTATIONS[kind][name]
    return chosen(build(chosen.Config, options, f"data.augment.{name}"))


def print_rows(workers: int, processes: int, process: int, start: int, stop: int) -> None:
    """Prints one line for each row that one of several processes loads, for the given data steps."""
    own = np.arange(ROWS)[process::processes]
    with stream(workers).train_batches("train", ROWS * PACKING.slots, start, own) as batches:
        for step in range(start, stop):
            batch = next(batches)
            assert int(batch.step) == step
            leaves = [leaf for leaf in jax.tree.leaves(batch) if np.ndim(leaf)]
            for place, row in enumerate(own):
                # Leaves are per example or per row.
                each = [leaf.reshape(len(own), -1, *leaf.shape[1:])[place] for leaf in leaves]
                digest = hashlib.sha256(b"".join(repr(x.shape).encode() + x.tobytes() for x in each))
                print(step, row, digest.hexdigest())


def rows(workers: int, processes: int, start: int = 0, stop: int = BATCHES) -> list[str]:
    """Output lines of all processes, which are real ones, in the order of steps and rows."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests import test_stream\n"
        "if __name__ == '__main__':\n"
        "    test_stream.print_rows(*map(int, sys.argv[2:]))\n"
    )
    folder = str(pathlib.Path(__file__).parents[1])
    with contextlib.ExitStack() as stack:
        running = []
        for process in range(processes):
            arguments = map(str, (workers, processes, process, start, stop))
            command = [sys.executable, "-c", code, folder, *arguments]
            running.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
            stack.callback(running[-1].kill)
        found = [each.communicate(timeout=600)[0].splitlines() for each in running]
    assert [each.returncode for each in running] == [0] * processes
    return sorted((line for lines in found for line in lines), key=lambda line: tuple(map(int, line.split()[:2])))


@pytest.mark.slow
def test_a_thousand_batches_are_the_same_for_any_processes_and_workers_and_after_resuming():
    whole = rows(workers=0, processes=1)
    assert len(whole) == BATCHES * ROWS and len({line.split()[2] for line in whole}) > 0.99 * len(whole)
    for processes in (1, 2, 4):
        for workers in (0, 2, 4):
            if (processes, workers) != (1, 0):
                assert rows(workers, processes) == whole, (processes, workers)
    seed = random.SystemRandom().randrange(2**31)
    cuts = sorted(random.Random(seed).sample(range(1, BATCHES), 4))
    parts, setups = zip([0, *cuts], [*cuts, BATCHES], strict=True), [(2, 1), (0, 4), (4, 2), (0, 1), (2, 4)]
    resumed = [rows(*setup, *part) for setup, part in zip(setups, parts, strict=True)]
    assert [line for part in resumed for line in part] == whole, f"batches differ when resumed at {cuts}"
