"""Benchmark of the train step: figures against closed forms, for several recipes and meshes."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from mmjax.experiment import Experiment
from mmjax.training import HOOKS

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = """
import sys
sys.path.insert(0, {benchmarks!r})
import synthetic

def get_config():
    config = synthetic.transformer_recipe(2)
    config.data.image = [16, 16, 3]
    config.data.inputs.image = {{"size": [16, 16], "channels": 3}}
    config.model.encoders.image = {{"kind": "vit", "patch": 8, "width": 8, "depth": 2, "heads": 1, "hidden": 16}}
    config.mesh = {{"data": 1, "fsdp": 1}}
    return config
"""


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield {name: importlib.import_module(name) for name in ("measurements", "step", "synthetic")}
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def experiment(modules):
    recipe = modules["synthetic"].transformer_recipe(3)
    recipe.train.batch_size = 4
    return Experiment(recipe, jax.devices()[:2])


@pytest.fixture(scope="module")
def run(modules, experiment):
    run = modules["measurements"].Run(experiment)
    yield run
    run.close()


def test_timing_excludes_the_first_step(modules, run):
    before = int(run.state.data_step)
    for real in (False, True):
        durations, waits = run.series(5, real)
        assert len(durations) == len(waits) == 5 and min(durations) > 0 and min(waits) >= 0
    assert int(run.state.data_step) - before == 2 * (5 + modules["measurements"].UNCOUNTED + 1)


def test_a_slow_pipeline_shows_as_waiting_and_a_quick_one_does_not(modules, run, monkeypatch):
    now, step = [0.0], run.step

    def batches(seconds):
        while True:
            now[0] += seconds
            yield run.batch

    def step_of_10_ms(state, batch):
        now[0] += 0.01
        return step(state, batch)

    monkeypatch.setattr(modules["measurements"], "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(run, "step", step_of_10_ms)
    for wait in (0.02, 0.0):
        monkeypatch.setattr(run, "batches", batches(wait))
        found = modules["measurements"].steps_and_waiting(run, 12, in_a_round=6)
        expected = {
            "step_ms": 10, "step_ms_p90": 10, "examples_per_second": 4 / 0.01, "input_ms": 1e3 * wait,
            "input_share": wait / (0.01 + wait), "real_over_same": (0.01 + wait) / 0.01,
        }  # fmt: skip
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_utilisation_is_the_models_flops_over_the_time_and_the_peak(modules, experiment, monkeypatch):
    measurements = modules["measurements"]
    found = measurements.utilisation(experiment, 0.5)
    # 3 layers of 8 tokens: projections 4 x 8², MLP 2 x 8 x 8, attention 2 x 8 x 8; fusion and head are small.
    layers = 2 * 3 * 4 * 8 * (4 * 8 * 8 + 2 * 8 * 8 + 2 * 8 * 8)
    assert 3 * layers < found["flops"] < 1.2 * 3 * layers
    assert found["tflops_per_device"] == pytest.approx(found["flops"] / 0.5 / 2 / 1e12)
    assert found["utilisation"] is None
    monkeypatch.setattr(measurements, "peak_flops", lambda kind: 1e6)
    assert measurements.utilisation(experiment, 0.5)["utilisation"] == pytest.approx(found["flops"] / 0.5 / 2 / 1e6)


def test_compiling_is_noticed_and_only_inside_the_block(modules):
    with modules["measurements"].compile_seconds() as seconds:
        jax.block_until_ready(jax.jit(lambda x: x * 3 + np.float32(time.time() % 1))(np.ones(7)))
    before = dict(seconds)
    assert all(value > 0 for value in before.values())
    jax.block_until_ready(jax.jit(lambda x: x * 5 + np.float32(time.time() % 1))(np.ones(7)))
    assert seconds == before


def test_peak_memory_and_the_host_are_reported(modules, run, experiment):
    found = modules["measurements"].memory(run)
    assert found["process_peak_bytes"] > 50 * 2**20 and found["step_bytes"] > 0
    machine = modules["measurements"].machine(experiment)
    assert machine["device"] == "2 x cpu" and "data=2" in machine["mesh"] and f"JAX {jax.__version__}" in str(machine)


def test_a_wrong_recipe_is_one_line_and_exit_code_2(modules, capsys):
    assert modules["step"].main(["step.py", "--config=configs/nosuch.py"]) == 2
    assert "file 'configs/nosuch.py' does not exist" in capsys.readouterr().err


def test_the_hook_that_ends_a_run_is_in_no_table_of_mmjax():
    assert not [kind for kind in HOOKS if "benchmark" in kind]


@pytest.mark.slow
def test_the_whole_benchmark_prints_its_figures_for_a_recipe_and_a_mesh(tmp_path):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE.format(benchmarks=str(ROOT / "benchmarks")))
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "step.py", f"--config={recipe}", "--config.mesh.fsdp=2",
         "--config.mesh.data=-1", "--steps=12", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        stdout=subprocess.PIPE, text=True, timeout=600, check=True, cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["mesh"].startswith("data=2 x fsdp=2") and found["device"] == "4 x cpu"
    assert found["warm"]["compile"] < found["cold"]["compile"]
    assert found["warm"]["to_first_step"] < found["cold"]["to_first_step"]
    assert set(found["overhead_ms"]) == {"recipe", "12 layers", "48 layers"}
    assert found["flops"] > 0 and found["utilisation"] is None


def test_the_packing_benchmark_prints_fill_rates():
    command = [sys.executable, str(ROOT / "benchmarks" / "packing.py"), "--examples=20000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    packed = [line[1:] for line in lines if line[:1] == ["packed"]]
    padded = [line[4:] for line in lines if line[:3] == ["padded", "to", "the"]]
    assert [len(shares) for shares in packed] == [len(shares) for shares in padded] == [1, 2, 1, 2]
    for one, other in zip(packed, padded, strict=True):
        shares = [float(share.rstrip("%")) for share in one]
        # The plan fills one of the two budgets.
        assert max(shares) > (95 if len(shares) == 1 else 90) > float(other[0].rstrip("%")) + 30
