"""`mmjax reproduce` compares an experiment with its recorded result, and records new results."""

from __future__ import annotations

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import PIL.Image
import pytest

from mmjax.__main__ import main
from mmjax.config import build
from mmjax.errors import UserError
from mmjax.reporting.plots import plot_arms
from mmjax.reporting.records import BEGIN_MARK, END_MARK, arms_markdown, group_by_metric, judge, summarize
from mmjax.runs.reproduction_config import ReproductionConfig

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = {
    "question": "Does it work?",
    "config": "configs/small.py",
    "seeds": [0],
    "metrics": {"test": {"digit/accuracy": 0.02}},
    "subsets": {"split": "test", "metric": "digit/accuracy", "within": 0.15},
}
TWO_STEPS = """
from tests import matched_recipe

def get_config():
    config = matched_recipe.get_config()
    config.data.modality_dropout = {}
    config.model = {"encoders": {"text": {"kind": "text_transformer", "width": 16, "depth": 1, "heads": 2}}}
    config.tasks = {"digit": {"kind": "classification", "reads": "encoders.text"}}
    config.schedule.warmup = 0
    config.evaluate.every = 1
    return config
"""


@pytest.fixture(autouse=True)
def in_folder(monkeypatch, digits_cache):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    monkeypatch.chdir(ROOT)


@pytest.fixture
def experiment(tmp_path) -> pathlib.Path:
    """Folder of an experiment without a result, with its recipe in place."""
    folder = tmp_path / "experiments" / "01_small"
    folder.mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    shutil.copyfile(ROOT / "tests" / "matched_recipe.py", tmp_path / "configs" / "small.py")
    write(folder)
    return folder


@pytest.fixture
def trained(tmp_path, trained_run) -> str:
    """`--workdir` flag of a folder in which seed 0 is already trained."""
    shutil.copytree(trained_run, tmp_path / "runs" / "seed_0")
    return f"--workdir={tmp_path / 'runs'}"


def write(folder: pathlib.Path, **changes) -> None:
    (folder / "experiment.json").write_text(json.dumps({**EXPERIMENT, **changes}))


def test_a_recorded_result_is_found_again_and_another_one_is_not(capsys, experiment, trained):
    before, after = "# Small\n\nWhat we wanted to know.\n\n", "\n\nWhat we learned.\n"
    (experiment / "README.md").write_text(f"{before}{BEGIN_MARK}\nold\n{END_MARK}{after}")
    assert main(["reproduce", str(experiment), trained, "--record"]) == 0
    text = (experiment / "README.md").read_text()
    assert text.startswith(before) and text.endswith(after) and "\nold\n" not in text
    assert "| audio + image + text |" in text and "plot.png" in text
    assert (experiment / "plot.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((experiment / "results.json").read_text())
    assert results["seeds"]["0"]["test"]["digit/accuracy"] == results["metrics"]["test"]["digit/accuracy"]["mean"]
    assert len(results["subsets"]) == 7 and results["versions"]["jax"]
    assert str(ROOT) not in json.dumps(results)

    capsys.readouterr()
    assert main(["reproduce", str(experiment), trained]) == 0
    out = capsys.readouterr().out
    assert "seed 0: bit-identical parameters" in out and out.rstrip().endswith("\nreproduced")

    results["metrics"]["test"]["digit/accuracy"]["mean"] -= 0.5
    (experiment / "results.json").write_text(json.dumps(results))
    assert main(["reproduce", str(experiment), trained]) == 1
    assert "NOT reproduced" in capsys.readouterr().out


def test_missing_runs_are_trained_with_the_overrides(capsys, tmp_path, experiment):
    (tmp_path / "configs" / "small.py").write_text(TWO_STEPS)
    write(experiment, subsets=None, seeds=[3, 4], overrides={"train.steps": 2})
    words = ["reproduce", str(experiment), f"--workdir={tmp_path / 'runs'}"]
    assert main([*words, "--record"]) == 0
    configs = [json.loads((tmp_path / "runs" / f"seed_{seed}" / "config.json").read_text()) for seed in (3, 4)]
    assert [config["seed"] for config in configs] == [3, 4]
    assert [config["train"]["steps"] for config in configs] == [2, 2]
    results = json.loads((experiment / "results.json").read_text())
    assert results["seeds"]["3"]["parameters_hash"] != results["seeds"]["4"]["parameters_hash"]
    assert [step for step, _ in results["curves"]["3"]["validation"]] == [1, 2]
    assert main([*words, "--seeds=4"]) in (0, 1)
    assert "seed 4: bit-identical parameters" in capsys.readouterr().out


def test_arms_are_compared_on_folds(capsys, tmp_path, experiment):
    (tmp_path / "configs" / "small.py").write_text(TWO_STEPS)
    write(
        experiment,
        subsets=None,
        seeds=[1],
        overrides={"train.steps": 2},
        arms={"plain": {}, "narrow": {"overrides": {"model.encoders.text.width": 8}}},
        folds={"first": {}, "second": {"train.batch_size": 16}},
    )
    words = ["reproduce", str(experiment), f"--workdir={tmp_path / 'runs'}"]
    assert main([*words, "--record", "--jobs=2"]) == 0
    results = json.loads((experiment / "results.json").read_text())["arms"]
    assert set(results) == {"plain", "narrow"} and set(results["plain"]) == {"first", "second"}
    assert results["narrow"]["second"]["overrides"]["model.encoders.text.width"] == 8
    config = json.loads((tmp_path / "runs" / "narrow" / "second" / "seed_1" / "config.json").read_text())
    assert (config["seed"], config["train"]["batch_size"], config["model"]["encoders"]["text"]["width"]) == (1, 16, 8)
    # The child processes saw fewer cores; their results must equal those of this process.
    alone = json.loads((tmp_path / "runs" / "plain" / "first" / "seed_1" / "result.json").read_text())
    assert results["plain"]["first"]["seeds"]["1"]["test"] == alone["test"]
    values = [results["plain"][fold]["seeds"]["1"]["test"]["digit/accuracy"] for fold in ("first", "second")]
    text = (experiment / "README.md").read_text()
    assert (
        f"| test | `digit/accuracy` | plain | {statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f} |" in text
    )
    assert (experiment / "plot.png").read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    assert main([*words, "--arms=narrow", "--folds=second"]) in (0, 1)
    out = capsys.readouterr().out
    assert "narrow / second seed 1: bit-identical parameters" in out and "plain" not in out


def test_every_required_metric_is_in_the_table_and_the_plot(tmp_path):
    def summary(**metrics):
        found = {name: {"digit/accuracy": value} for name, value in metrics.items()}
        return {
            "metrics": {
                split: {name: summarize([value]) for name, value in row.items()} for split, row in found.items()
            },
            "seeds": {"0": found}, "subsets": {}, "parameters": 10, "seconds": summarize([1.0]),
            "machine": {"devices": "1 x cpu", "kind": "x", "cores": 1},
            "versions": dict.fromkeys(("mmjax", "python", "jax", "flax", "optax"), "1"),
        }  # fmt: skip

    arms = {"together": {"": summary(one=0.9, two=0.8)}, "alone": {"": summary(two=0.7)}}
    shown = {"together": [("one", "digit/accuracy"), ("two", "digit/accuracy")], "alone": [("two", "digit/accuracy")]}
    rows = [line for line in arms_markdown(arms, shown, {}).splitlines() if "digit" in line]
    assert [row.split(" | ")[:4] for row in rows] == [
        ["| one", "`digit/accuracy`", "together", "0.9000"],
        ["| two", "`digit/accuracy`", "together", "0.8000"],
        ["| two", "`digit/accuracy`", "alone", "0.7000"],
    ]
    # One panel per metric; its height grows with the number of arms.
    sizes = []
    for count, which in enumerate((shown, {"together": shown["together"][:1]})):
        plot_arms(tmp_path / f"{count}.png", arms, group_by_metric(which))
        sizes.append(PIL.Image.open(tmp_path / f"{count}.png").height)
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.slow
def test_runs_in_processes_of_their_own_end_with_the_command(tmp_path, experiment):
    write(experiment, subsets=None, arms={"a": {}, "b": {}}, overrides={"train.steps": 100_000})
    words = ["reproduce", str(experiment), f"--workdir={tmp_path / 'runs'}", "--record", "--jobs=2"]
    command = subprocess.Popen([sys.executable, "-m", "mmjax", *words], stdout=subprocess.DEVNULL)
    logs = [tmp_path / "runs" / arm / "seed_0" / "metrics.jsonl" for arm in "ab"]
    until(lambda: all(log.exists() and log.read_text().count("\n") > 1 for log in logs))
    runs = [
        int(child) for child in pathlib.Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    ]
    assert len(runs) >= 2
    command.kill()
    command.wait()
    until(lambda: not any(pathlib.Path(f"/proc/{run}").exists() for run in runs))
    # They saved a checkpoint before they ended.
    assert all([child.name for child in (log.parent / "checkpoints").iterdir()] for log in logs)


def until(done, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("changes", "words", "expected"),
    [
        ({}, [], "results.json: does not exist: no result is recorded yet; run with --record first"),
        ({}, ["--seeds=one"], "--seeds: 'one' is not a seed"),
        ({}, ["--seeds=²"], "--seeds: '²' is not a seed"),
        ({}, ["--seeds=7"], "--seeds: [7] are not in"),
        ({}, ["--seeds="], "--seeds: [] are not in"),
        ({}, ["--record", "--seeds=1"], "--seeds: [1] are not in"),
        ({"arms": {"a": {}}}, ["--record", "--arms=b"], "--arms: ['b'] are not in"),
        ({"arms": {"a": {}, "b": {}}}, ["--record", "--arms=b"], "--arms: ['b'] are not all of"),
        ({"arms": {"../a": {}}}, ["--record"], "'../a' is not a valid folder name; give one without slashes"),
        ({"arms": {"a": {"config": "configs/smal.py"}}}, ["--record"], "does not exist"),
        ({"folds": {"a": {}}}, ["--record"], "folds require arms; give at least one arm"),
        ({"sedes": [1]}, ["--record"], "unknown key 'sedes'; did you mean 'seeds'?"),
        ({"config": "configs/smal.py"}, ["--record"], "does not exist"),
        ({"overrides": {"train.stpes": 2}}, ["--record"], "no key 'stpes' here; did you mean 'steps'?"),
        ({"overrides": {"train.steps": "two"}}, ["--record"], "train.steps: 'two' is a str"),
        ({"metrics": {"tset": {"digit/accuracy": 0.1}}}, ["--record"], "unknown split 'tset'; did you mean 'test'?"),
        ({"metrics": {"test": {"digit/acuracy": 0.1}}}, ["--record"], "did you mean 'digit/accuracy'?"),
        ({"metrics": {"test": {"digit/accuracy": -1}}}, ["--record"], "-1.0 is out of range"),
        ({"subsets": {"split": "test", "metric": "digit/f1", "within": 1}}, ["--record"], "no upper bound of"),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_is_trained(
    capsys, tmp_path, experiment, changes, words, expected
):
    write(experiment, **changes)
    before = sorted(tmp_path.rglob("*.*"))
    assert main(["reproduce", str(experiment), f"--workdir={tmp_path / 'runs'}", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*.*")) if path.suffix != ".pyc"] == before
    assert not (tmp_path / "runs").exists()


def test_an_experiment_has_to_be_named(capsys, experiment):
    assert main(["reproduce"]) == 2
    assert "no experiment is given; give one folder" in capsys.readouterr().err
    assert main(["reproduce", str(experiment) + "x"]) == 2
    assert f"did you mean '{experiment}'?" in capsys.readouterr().err


def test_the_recorded_experiments_can_be_run():
    for path in sorted((ROOT / "experiments").rglob("experiment.json")):
        config = build(ReproductionConfig, json.loads(path.read_text()), str(path))
        for cell in config.cells:
            assert (ROOT / cell.config.partition(":")[0]).is_file()
        readme = (path.parent / "README.md").read_text()
        assert readme.index(BEGIN_MARK) < readme.index(END_MARK)
        assert f"mmjax reproduce {path.parent.relative_to(ROOT)}" in readme


def test_overrides_of_experiment_arm_and_fold_are_merged():
    section = {
        "question": "?",
        "config": "configs/small.py",
        "seeds": [0],
        "metrics": {"test": {"digit/accuracy": 0.1}},
        "overrides": {"a": 0, "b": 0, "c": 0, "d": 0},
        "arms": {"one": {"overrides": {"b": 1, "c": 1, "d": 1}, "folds": {"right": {"d": 3}}}, "two": {}},
        "folds": {"left": {"c": 2, "d": 2}, "right": {"c": 2, "d": 2}},
    }
    cells = {cell.name: cell.overrides for cell in build(ReproductionConfig, section, "").cells}
    assert cells["one / left"] == {"a": 0, "b": 1, "c": 2, "d": 2}
    assert cells["one / right"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert cells["two / right"] == {"a": 0, "b": 0, "c": 2, "d": 2}
    section["arms"]["one"]["folds"] = {"rigth": {}}
    with pytest.raises(UserError, match="arm 'one' overrides the unknown fold 'rigth'; did you mean 'right'"):
        build(ReproductionConfig, section, "experiment.json")


def test_a_verdict_allows_for_sampling_error_above_and_for_points_below():
    # One standard error of 0.5 on 400 examples is 0.025.
    assert judge(0.549, 0.5, 400, 0.05) == "as expected"
    assert judge(0.551, 0.5, 400, 0.05) == "ABOVE by 5.1 points"
    assert judge(0.451, 0.5, 400, 0.05) == "as expected"
    assert judge(0.44, 0.5, 400, 0.05) == "SHORT by 6.0 points"
    assert judge(1.0, 1.0, 400, 0.05) == "as expected"


def test_a_spread_is_that_of_a_sample():
    assert summarize([1.0, 2.0, 3.0]) == {"mean": 2.0, "deviation": 1.0, "smallest": 1.0, "largest": 3.0}
    assert summarize([0.5])["deviation"] is None
