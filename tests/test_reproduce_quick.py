"""`mmjax reproduce --quick` runs every arm of every experiment in its small form; `--all` covers all experiments."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mmjax.__main__ import main
from mmjax.config import build
from mmjax.runs.reproduction import find_experiments, is_checked_by_script
from mmjax.runs.reproduction_config import ReproductionConfig
from tests.test_digits import speech_is_installed

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = find_experiments(ROOT / "experiments")
SOME = {"choice": ["everything", "half the channels"]}
"""Arms that are run by default, where an experiment has many that differ little."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, compiled) -> pathlib.Path:
    """Folder with the table of experiment 04."""
    folder = tmp_path_factory.mktemp("project")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    script = ROOT / "experiments" / "04_mixture" / "tumours.py"
    subprocess.run([sys.executable, script], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder


def read_config(folder: pathlib.Path) -> ReproductionConfig:
    return build(ReproductionConfig, json.loads((folder / "experiment.json").read_text()), "")


TRAINED = [folder for folder in EXPERIMENTS if not is_checked_by_script(folder)]


def quick_cells() -> list:
    """The arms of all experiments that run by default."""
    return [cell for folder in TRAINED if folder.name not in SOME for cell in read_config(folder).cells]


def cases() -> list:
    names = {folder: str(folder.relative_to(ROOT / "experiments")) for folder in TRAINED}
    some = [pytest.param(folder, SOME.get(folder.name, []), id=name) for folder, name in names.items()]
    slow = [folder for folder in TRAINED if folder.name in SOME]
    return some + [pytest.param(each, [], id=f"all of {names[each]}", marks=pytest.mark.slow) for each in slow]


@speech_is_installed
@pytest.mark.parametrize(("folder", "arms"), cases())
def test_all_parts_of_every_experiment_run(digits_folder, capsys, tmp_path, folder, arms):
    flags = [f"--workdir={tmp_path}", *(f"--arms={arm}" for arm in arms)]
    code = main(["reproduce", str(folder), "--quick", *flags])
    out = capsys.readouterr().out
    config = read_config(folder)
    count = len(arms or config.arms or [""])
    assert f"all {count} parts run; the record has the same entries" in out and code == 0, out
    trained = [json.loads(path.read_text()) for path in tmp_path.rglob("config.json")]
    assert len(trained) == count and all(recipe["train"]["steps"] == 2 for recipe in trained)
    assert {recipe["seed"] for recipe in trained} == {config.seeds[0]}


@speech_is_installed
def test_a_record_with_other_entries_is_reported(digits_folder, capsys, tmp_path):
    folder = tmp_path / "experiments" / "01_digits"
    shutil.copytree(ROOT / "experiments" / "01_digits", folder)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    record = json.loads((folder / "results.json").read_text())
    record["metrics"]["test"]["answer/acuracy"] = record["metrics"]["test"].pop("answer/accuracy")
    (folder / "results.json").write_text(json.dumps(record))
    assert main(["reproduce", str(folder), "--quick", f"--workdir={tmp_path / 'runs'}"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "only in the record: metrics.test.answer/acuracy.mean" in out
    assert "missing in the record: metrics.test.answer/accuracy.mean" in out


def experiments(folder: pathlib.Path, **codes: int) -> None:
    for name, code in codes.items():
        (folder / "experiments" / name).mkdir(parents=True)
        (folder / "experiments" / name / "check.py").write_text(
            f"import sys, mmjax\nprint({name!r}, sys.argv[1:], flush=True)\nsys.exit({code})\n"
        )


@pytest.mark.parametrize(("codes", "expected"), [({"a": 0, "b": 0}, 0), ({"a": 1, "b": 0}, 1)])
@pytest.mark.parametrize(("flags", "argument"), [(["--quick"], "[]"), ([], "['--full']")])
def test_all_experiments_are_reproduced_and_plans_by_their_own_check(
    monkeypatch, capfd, tmp_path, codes, expected, flags, argument
):
    experiments(tmp_path, **codes)
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--all", *flags]) == expected
    out = capfd.readouterr().out
    assert f"a {argument}\n" in out and f"b {argument}\n" in out
    assert ("experiments/a: NOT reproduced" in out) == bool(expected) and "experiments/b: reproduced" in out


def test_an_experiment_without_its_data_is_skipped_by_all_and_refused_alone(monkeypatch, capsys, tmp_path):
    for name in ("02_avmnist", "04_mixture"):
        shutil.copytree(ROOT / "experiments" / name, tmp_path / "experiments" / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "nothing"))
    assert main(["reproduce", "--all", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped = [line for line in lines if ": SKIPPED, its data is missing: " in line]
    assert len(skipped) == 3 and "MMJAX_DATA" in skipped[0] and "prepared/tumours" in skipped[2]
    assert main(["reproduce", "experiments/02_avmnist", "--quick"]) == 2
    assert "MMJAX_DATA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--all", "--record"], "--record: selects within one experiment"),
        (["--all", "--seeds=1"], "--seeds: selects within one experiment"),
        (["--all", "experiments/01_digits"], "--all: experiments/01_digits is given too"),
        (["--quick", "--record", "experiments/01_digits"], "--record: the result of a small form is no record"),
        (["--all"], "experiments: contains no experiments"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    assert message in capsys.readouterr().err
