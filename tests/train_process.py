"""Child process of multi-process training, started by `tests/test_processes.py`; a single one serves as reference.

    python tests/train_process.py FOLDER [MESH [packed]]

With a mesh, such as "data=2 x tensor=4", computes the gradients of the first step, on packed examples if requested;
without one, trains 10 steps by `mmjax.runs.run.train`. The variables MMJAX_COORDINATOR, MMJAX_PROCESS_COUNT and
MMJAX_PROCESS_ID identify the process. Each process writes FOLDER/found.I.npz or FOLDER/result.I.json.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys

import jax
import numpy as np


def recipe(mesh: dict[str, int]):
    from tests import small_recipe

    config = small_recipe.get_config()
    config.mesh = {"fsdp": 1, "tensor": 1, **mesh}
    config.train.steps = 10
    config.train.batch_size = 32
    # Two-pass accumulation and a contrastive task, whose pairs span both processes.
    config.tasks["pair"] = {
        "kind": "contrastive",
        "pair": ["encoders.image", "encoders.text"],
        "positives": "digit",
        "width": 16,
    }
    config.log.every = 2
    config.evaluate.every = 6
    config.checkpoint.every = 4
    return config


def packed_recipe(mesh: dict[str, int]):
    from mmjax.datasets import DATASETS
    from tests import test_packing

    DATASETS["sizes"] = test_packing.Sizes
    return {**test_packing.recipe(slots=4), "mesh": {"fsdp": 1, "tensor": 1, **mesh}}


def gradients(folder: pathlib.Path, config) -> None:
    from mmjax.experiment import Experiment

    found = {}
    experiment = Experiment(config)
    read = experiment.pipeline.train_batches

    def noted(*arguments, rows, **options):
        found["rows"] = rows
        return read(*arguments, rows=rows, **options)

    experiment.pipeline.train_batches = noted
    with jax.default_matmul_precision("highest"):
        state = experiment.init_state()
        with contextlib.closing(experiment.train_batches(0)) as batches, jax.set_mesh(experiment.mesh):
            measured, states = experiment.trainer.gradients_and_metrics(state.parameters, next(batches))
            whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(experiment.mesh, jax.P()))
            measured = whole(measured)
    found["loss"] = np.float64(jax.device_get(states["loss"]).compute())
    for path, leaf in jax.tree_util.tree_leaves_with_path(measured):
        found[f"gradients/{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    np.savez(folder / f"found.{jax.process_index()}.npz", **found)


def train(folder: pathlib.Path) -> None:
    from mmjax import files
    from mmjax.runs import run as runs
    from mmjax.runs import workdir
    from mmjax.training import metrics_log

    process, written = jax.process_index(), []
    for module in (files, workdir, runs, metrics_log):
        for name in ("write_json", "write_atomically"):
            if hasattr(module, name):
                original = getattr(module, name)

                def noted(path, *rest, original=original):
                    written.append(path.name)
                    original(path, *rest)

                setattr(module, name, noted)
    result = runs.train(recipe({"data": 2, "fsdp": 2, "tensor": 2}), folder / "run")
    result = {"result": result, "written": written, "processes": jax.process_count()}
    (folder / f"result.{process}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    from mmjax.processes import initialize

    initialize()
    assert jax.device_count() == 8
    folder = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        sizes = (axis.split("=") for axis in sys.argv[2].split(" x "))
        mesh = {axis: int(size) for axis, size in sizes}
        gradients(folder, packed_recipe(mesh) if sys.argv[3:] == ["packed"] else recipe(mesh))
    else:
        train(folder)
