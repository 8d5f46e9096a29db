"""`mmjax plan`: it compiles the train step itself, reports a step that does not fit, and finds a change that does."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags as absl_flags
from ml_collections import ConfigDict

from mmjax.__main__ import main
from mmjax.commands import plan as command
from mmjax.experiment import Experiment, plain
from mmjax.planning import search
from mmjax.planning.lower_bound import LowerBound
from mmjax.planning.plan import cost, make_plan, needed_bytes
from mmjax.recipe import load_recipe
from mmjax.sharding import place_batch

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {
    "fits", "peak_bytes", "capacity_bytes", "model_flops", "cycles", "step_seconds", "utilisation",
    "examples_per_second", "collectives", "chips",
}  # fmt: skip


def small_recipe(batch_size: int = 16, **mesh: int) -> ConfigDict:
    config = ConfigDict()
    config.data = {"name": "synthetic", "letters": 30, "inputs": {"text": {"length": 32}}}
    trunk = {"width": 128, "depth": 3, "heads": 2, "hidden": 256}
    config.model = {"encoders": {"text": {"kind": "text_transformer", **trunk}}}
    config.tasks = {"label": {"kind": "classification", "reads": "encoders.text"}}
    config.optimizer = {"name": "adamw", "weight_decay": 0.05}
    config.schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 10}
    config.train = {"steps": 100, "batch_size": batch_size}
    config.mesh = mesh or {"data": -1}
    config.evaluate = {"every": 0, "splits": []}
    return config


def test_the_step_that_is_planned_is_the_one_that_trains():
    experiment = Experiment(small_recipe(data=4, fsdp=2))
    state = experiment.init_state()
    size = experiment.config.train.batch_size
    batch = place_batch(experiment.mesh, experiment.pipeline.batch_at("train", size, 0), size)
    trained = experiment.compile_step().lower(state, batch).as_text()
    assert experiment.lower_step().as_text() == trained
    planned = experiment.lower_step().compile()
    experiment.compile_step()(state, batch)
    assert planned.memory_analysis().argument_size_in_bytes > 0


def test_a_plan_of_this_machines_devices_has_memory_and_flops_but_no_time():
    experiment = Experiment(small_recipe(data=4, fsdp=2))
    plan, text = make_plan("small", "this machine", experiment)
    assert plan.as_dict().keys() >= KEYS and text is not None
    assert plan.fits and plan.devices == 8 and plan.mesh == {"data": 4, "fsdp": 2}
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(experiment.init_state().parameters))
    assert 4 * plan.parameters == parameters
    # fsdp halves the parameters that it splits and replicates the others; Adam keeps two moments of each.
    assert parameters / 2 <= plan.memory.parameters < parameters
    assert plan.memory.optimizer == pytest.approx(2 * plan.memory.parameters, rel=0.01)
    assert plan.step_seconds is None and plan.utilisation is None and cost(plan, 1e6, 1.0) is None


def run_command(words: list[str], capsys) -> dict:
    flags = absl_flags.FlagValues()
    command.define_flags(flags)
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def recipe_file(tmp_path):
    def write(batch_size: int) -> str:
        path = tmp_path / "small.py"
        path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.test_plan import small_recipe\n\n"
                        f"def get_config():\n    return small_recipe({batch_size})\n")  # fmt: skip
        return f"--config={path}"

    return write


def test_a_plan_for_an_absent_pod_is_complete(recipe_file, capsys, tmp_path):
    words = ["--topology=v5e:2x4", "--num_slices=2", "--batch_per_chip=4", "--examples=1e6", "--price=2"]
    found = run_command([recipe_file(64), *words, f"--hlo={tmp_path / 'step.txt'}"], capsys)
    assert found.keys() >= KEYS and found["fits"] is True
    assert found["chips"] == 16 and found["batch_size"] == 64 and found["mesh"] == {"slice": 2, "data": 8}
    assert found["cycles"] > 0 and 0 < found["utilisation"] < 1
    assert found["step_seconds"] == pytest.approx(
        sum(found[f"{part}_seconds"] for part in ("compute", "kernel", "exposed", "prefetch")), rel=1e-6
    )
    low, high = found["step_seconds_range"]
    assert low <= found["step_seconds"] <= high
    # Float32 gradients cross the slices; each of the 8 chips of a slice sends its shard, but all of a small array.
    across = [row for row in found["collectives"] if "slice" in row["axis"] and row["kind"] == "all-reduce"]
    assert 0.9 < sum(row["bytes"] for row in across) / (4 * found["parameters"] / 8) < 2.5
    rate = 64 / found["step_seconds"]
    assert found["examples_per_second"] == pytest.approx(rate)
    assert found["cost"] == pytest.approx(1e6 / rate / 3600 * 16 * 2)
    assert "HloModule" in (tmp_path / "step.txt").read_text()


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_reported_with_a_change_that_does(recipe_file, capsys):
    found = run_command([recipe_file(2**18), "--topology=v5e:1x1"], capsys)
    assert found["fits"] is False and found["peak_bytes"] > found["capacity_bytes"]
    assert found["missing_bytes"] == found["peak_bytes"] - found["capacity_bytes"]
    remedy = found["remedy"]
    assert remedy["fits"] is True and remedy["peak_bytes"] <= remedy["capacity_bytes"]
    # The remedy was compiled, so it has cycles.
    flags = [f"--config.{key}={value}" for key, value in remedy["overrides"].items()]
    assert flags and remedy["cycles"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5e:3"], "does not have 2 dimensions"),
        (["--num_slices=2"], "--num_slices: has no effect without --topology"),
        (["--price=1"], "--price: has no effect without --examples"),
        (["--config.mesh.data=3"], "does not divide 8 device(s)"),
    ],
)
def test_impossible_plans_are_refused_in_one_line(recipe_file, capsys, words, message):
    assert main(["plan", recipe_file(16), *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line and line.startswith("mmjax: error: ")


def test_the_needed_bytes_are_parsed_from_the_compilers_message():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (61.00G) exceeds "
        "available HBM (15.75G)."
    )
    assert needed_bytes(message) == 61 * 2**30
    assert needed_bytes("RESOURCE_EXHAUSTED: Ran out of memory. Used 18.30G of 15.75G hbm.") == int(18.3 * 2**30)
    assert needed_bytes("INVALID_ARGUMENT: something else") is None


class Landscape:
    """Fabricated plans: fsdp=4 is the fastest, and doubling the batch does not fit."""

    def __init__(self, base):
        self.base, self.count = base, 0

    def __call__(self, overrides):
        import dataclasses

        self.count += 1
        fsdp, batch = overrides.get("mesh.fsdp", 1), overrides.get("train.batch_size", 16)
        seconds = 0.01 * (1 + abs(fsdp - 4))
        return dataclasses.replace(
            self.base, mesh={"fsdp": fsdp}, batch_size=batch, fits=batch <= 16, step_seconds=seconds, capacity_bytes=100
        )


def test_a_search_finds_the_fastest_mesh_that_fits():
    experiment = Experiment(small_recipe())
    plan, _ = make_plan("small", "this machine", experiment)
    landscape = Landscape(plan)
    ranking = search.search(plain(small_recipe()), landscape({}), landscape, 60, lambda what: None)
    overrides, best = ranking[0]
    assert overrides["mesh.fsdp"] == 4 and best.fits and landscape.count < 40
    assert [search.score(each) for _, each in ranking] == sorted(
        (search.score(each) for _, each in ranking), reverse=True
    )
    assert "--config.mesh.fsdp=4" in search.as_flags(overrides)


@pytest.mark.parametrize("stated", [{}, {"model.encoders.text.rematerialise": "dots", "mesh.data": -1}])
def test_a_search_plans_nothing_twice_and_takes_a_larger_batch_that_fits_with_less_kept(stated):
    import dataclasses

    raw = search.override(plain(small_recipe()), stated)
    base, _ = make_plan("small", "this machine", Experiment(raw))
    # Nine of 10 bytes are activations: doubling the batch needs 19 of 16, or 10 with half of them rematerialised.
    needs, seconds = (
        {"none": 9, "dots": 9, "dots_except_mlp": 4, "full": 2},
        {"none": 1, "dots": 1, "dots_except_mlp": 1.02},
    )
    tried = []

    def attempt(overrides):
        section = search.override(raw, overrides)
        how = section["model"]["encoders"]["text"].get("rematerialise", "none")
        times, mesh = section["train"]["batch_size"] / 16, section["mesh"]
        data = mesh["data"] if mesh["data"] > 0 else 8 // (mesh.get("fsdp", 1) * mesh.get("tensor", 1))
        tried.append((how, times, data, mesh.get("fsdp", 1), mesh.get("tensor", 1), section["train"].get("accumulate")))
        peak = 1 + needs[how] * times
        return dataclasses.replace(
            base,
            mesh={"data": data, "fsdp": mesh.get("fsdp", 1), "tensor": mesh.get("tensor", 1)},
            batch_size=int(16 * times),
            parameters=0,
            capacity_bytes=16,
            fits=peak <= 16,
            peak_bytes=int(peak),
            step_seconds=times * seconds.get(how, 1.3) - 0.1 * (times - 1) + 0.01 * (8 - data),
        )

    first = attempt({})
    ranking = search.search(raw, first, attempt, 60, lambda what: None)
    overrides, best = ranking[0]
    assert overrides["train.batch_size"] == best.batch_size == 32
    assert overrides["model.encoders.text.rematerialise"] == "dots_except_mlp" and best.mesh["data"] == 8
    assert len(set(tried)) == len(tried) == len(ranking) > 5
    # Enough memory: the search tries rematerialisation only for a larger batch.
    assert not any(how in ("dots_except_mlp", "full") and times == 1 for how, times, *_ in tried)


def test_a_ranking_is_one_line_a_plan_however_narrow_the_terminal_and_ends_with_flags_to_paste():
    import dataclasses
    import io

    from rich.console import Console

    from mmjax.planning.report import print_ranking

    plan, _ = make_plan("small", "this machine", Experiment(small_recipe()))
    plan = dataclasses.replace(plan, fits=True)
    changes = {
        "model.encoders.image.rematerialise": "dots_except_mlp",
        "model.encoders.text.rematerialise": "dots_except_mlp",
    }
    out = io.StringIO()
    print_ranking(Console(file=out, width=40), [(changes, plan), ({}, dataclasses.replace(plan, fits=False))])
    lines = out.getvalue().splitlines()
    assert len(lines) == 6 and lines[2].endswith(" ".join(f"{key}={value}" for key, value in changes.items()))
    assert "(OOM)" in lines[3] and lines[3].endswith("unchanged recipe")
    assert lines[5].strip() == search.as_flags(changes)


@pytest.mark.parametrize(
    ("needs", "answer", "compiled"),
    [
        # GiB of activations with no, partial and full rematerialisation; the first change that fits 16 GiB; and the
        # number of compiled changes.
        ((30, 12, 10), {"model.encoders.text.rematerialise": "dots_except_mlp"}, 1),
        ((40, 25, 10), {"model.encoders.text.rematerialise": "full"}, 2),
        ((400, 200, 50), {"model.encoders.text.rematerialise": "full", "train.accumulate": 4}, 1),
        ((90_000, 90_000, 90_000), None, 0),
    ],
)
def test_the_first_change_that_fits_is_the_one_that_costs_least(needs, answer, compiled):
    import dataclasses

    gibibyte = 2**30
    base, _ = make_plan("small", "this machine", Experiment(small_recipe(1024, data=8)))
    base = dataclasses.replace(
        base,
        fits=False,
        peak_bytes=needs[0] * gibibyte,
        capacity_bytes=16 * gibibyte,
        bound=LowerBound(0, 0, 0, needs[2] * gibibyte // 2),
    )
    tried = []

    def attempt(overrides, seconds):
        tried.append(overrides)
        need = needs[
            ("none", "dots_except_mlp", "full").index(overrides.get("model.encoders.text.rematerialise", "none"))
        ]
        need = need / overrides.get("train.accumulate", 1) * overrides.get("train.batch_size", 1024) / 1024
        return dataclasses.replace(base, fits=need <= 16, peak_bytes=int(need * gibibyte))

    found = search.find_fitting(plain(small_recipe(1024)), base, 8, attempt, lambda what: None)
    assert found.overrides == answer and (found.plan is not None) == (answer is not None)
    assert [trial.overrides for trial in found.trials] == tried and len(tried) == compiled


def test_overrides_change_a_copy():
    raw = plain(small_recipe())
    changed = search.override(raw, {"train.accumulate": 4, "mesh.fsdp": 2})
    assert changed["train"]["accumulate"] == 4 and changed["mesh"]["fsdp"] == 2 and "accumulate" not in raw["train"]
    assert search.remat_overrides(raw, "full") == {"model.encoders.text.rematerialise": "full"}
    full = search.override(raw, search.remat_overrides(raw, "full"))
    assert search.remat_overrides(full, "full") == {} == search.remat_overrides(full, "dots_except_mlp", only_more=True)
    assert search.remat_overrides(full, "dots") == {"model.encoders.text.rematerialise": "dots"}


@pytest.mark.parametrize("name", ["siglip_b16", "siglip_l16", "siglip_so400m", "trimodal_l"])
def test_recipes_to_plan_need_no_data(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "nothing"))
    raw = load_recipe(str(ROOT / "configs" / f"{name}.py"))
    raw.mesh = {"data": 2, "fsdp": 4}
    raw.train.batch_size = 16
    experiment = Experiment(raw)
    assert "stablehlo" in experiment.lower_step().as_text() and not (tmp_path / "nothing").exists()
    inputs = experiment.abstract_batch.inputs
    assert inputs["text"].values.shape == (16, 64) and experiment.specs["text"].details["vocabulary"] == 32_000


def test_the_command_prints_a_plan(recipe_file):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "plan", recipe_file(16)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for word in ("this machine: 4 chips (cpu)", "data=4", "16 examples, 4 per device", "fits", "optimiser"):
        assert word in done.stdout
