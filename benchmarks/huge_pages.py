"""Compares the step time of a recipe with 2 MiB and with 4 KiB memory pages (`mmjax/host/huge_pages.py`).

    python benchmarks/huge_pages.py --config=configs/digits.py

Processes with and without alternate, because the page size is set when a process starts. Prints the median milliseconds
of each, and their ratio with its range over the turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from absl import app, flags

from mmjax.host.huge_pages import TUNABLE
from mmjax.recipe import load_recipe

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "the recipe")
TURNS = flags.DEFINE_integer("turns", 3, "processes of each kind", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 30, "timed steps of each process", lower_bound=3)
MEASURE = flags.DEFINE_bool("measure", False, "only print the median milliseconds of a step in this process")


def measure() -> float:
    """Returns the median milliseconds of a step on one batch that stays in memory."""
    import jax

    from mmjax.experiment import Experiment
    from mmjax.sharding import place_batch

    experiment = Experiment(load_recipe(CONFIG.value))
    size = experiment.config.train.batch_size
    batch = place_batch(experiment.mesh, experiment.pipeline.batch_at("train", size, 0), size)
    state, step, times = experiment.init_state(), experiment.compile_step(), []
    for _ in range(STEPS.value + 3):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:]) * 1e3


def main(_) -> None:
    if MEASURE.value:
        print(measure())
        return
    command = [sys.executable, __file__, "--measure", f"--config={CONFIG.value}", f"--steps={STEPS.value}"]
    found: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(TURNS.value):
        for huge, milliseconds in found.items():
            environment = {**os.environ, "GLIBC_TUNABLES": f"{TUNABLE}={huge}"}
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            milliseconds.append(float(output.split()[-1]))
    ratios = sorted(small / huge for small, huge in zip(found[0], found[1], strict=True))
    print(f"{CONFIG.value}, {os.cpu_count()} cores")
    print(f"4 KiB pages {statistics.median(found[0]):8.1f} ms per step")
    print(f"2 MiB pages {statistics.median(found[1]):8.1f} ms per step")
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    app.run(main)
