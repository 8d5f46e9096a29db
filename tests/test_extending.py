"""Follows `docs/extending.md` literally, in a copy of the package."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import QUICK_FLAGS

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
COPIED = ("mmjax", "configs", "tests", "pyproject.toml")
PARTS = {
    "encoder": "pose_transformer",
    "fusion": "sum",
    "task": "quantile",
    "loss_transform": "input_noise",
}


def blocks(language: str) -> dict[str, str]:
    """The block of the given language that follows each heading with a path, by path."""
    found = re.findall(rf"^### `([^`]+)`\n\n```{language}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(found) == len(dict(found)), "two headings name the same path"
    return dict(found)


def hunks(block: str) -> list[tuple[list[str], list[str], list[str]]]:
    """(lines before, lines to add, lines after) of each hunk of a diff; hunks may only add lines."""
    parts = []
    for part in block.split("@@\n"):
        lines = part.splitlines()
        kinds = "".join(line[0] for line in lines)
        assert re.fullmatch(r" *\+ *", kinds), f"each hunk must add exactly one line and remove none:\n{part}"
        at = kinds.index("+")
        parts.append(
            tuple([line[1:] for line in lines[some]] for some in (slice(at), slice(at, at + 1), slice(at + 1, None)))
        )
    return parts


def insert(text: str, before: list[str], added: list[str], after: list[str]) -> str:
    """Inserts lines at the unique position that the surrounding lines identify."""
    old, new = ("".join(line + "\n" for line in lines) for lines in (before + after, before + added + after))
    assert text.count(old) == 1, f"{text.count(old)} matches of\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> pathlib.Path:
    """A copy of the package with what the page adds."""
    folder = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    for path, text in blocks("python").items():
        assert not (folder / path).exists(), f"{path} already exists"
        (folder / path).write_text(text)
    for path, block in blocks("diff").items():
        for before, added, after in hunks(block):
            (folder / path).write_text(insert((folder / path).read_text(), before, added, after))
    return folder


def run(folder: pathlib.Path, *words: str, timeout: int = 300) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    environment["XLA_FLAGS"] = QUICK_FLAGS
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_each_part_is_one_file_and_one_line_in_a_table():
    tables = {
        "mmjax/modalities/__init__.py": "mmjax/modalities/pose.py",
        "mmjax/encoders/__init__.py": "mmjax/encoders/pose_transformer.py",
        "mmjax/fusion/__init__.py": "mmjax/fusion/sum.py",
        "mmjax/tasks/__init__.py": "mmjax/tasks/quantile.py",
        "mmjax/training/loss_transforms/__init__.py": "mmjax/training/loss_transforms/input_noise.py",
        "mmjax/datasets/__init__.py": "mmjax/datasets/gestures.py",
    }
    assert set(blocks("diff")) == set(tables)
    assert set(blocks("python")) == {*tables.values(), "configs/gestures.py"}
    for path, block in blocks("diff").items():
        imported, line = (added[0] for _, added, _ in hunks(block))
        module, name = re.fullmatch(r"from ([\w.]+) import (\w+)", imported).groups()
        assert tables[path] == module.replace(".", "/") + ".py"
        assert re.fullmatch(rf' +"\w+": {name},', line)


def test_the_new_files_are_in_our_style(extended):
    files = [*blocks("python"), *blocks("diff")]
    run(extended, "-m", "ruff", "check", "--no-cache", *files)
    run(extended, "-m", "ruff", "format", "--no-cache", "--check", *files)


def test_the_recipe_trains(extended):
    workdir = extended / "runs" / "gestures"
    train = ["train", "--config=configs/gestures.py", f"--workdir={workdir}", "--config.train.steps=60"]
    shown = run(extended, "-m", "mmjax", *train, "--config.evaluate.every=30", "--config.data.examples=512")
    assert "far+near" in shown
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]
    result = json.loads((workdir / "result.json").read_text())
    test = result["test"]
    assert test["gesture/accuracy"] > 1 / 3
    assert 0 < test["frequency/mean_absolute_error"] <= test["frequency/root_mean_square_error"] < 2
    assert set(result["subsets"]["test"]) == {"near", "far", "far+near"}

    arm = extended / "arm.csv"
    arm.write_text("".join("0,0,1,0,2,0\n" if step % 16 < 8 else "0,0,0,1,0,2\n" for step in range(40)))
    predict = ["-m", "mmjax", "predict", f"--workdir={workdir}", f"--near={arm}"]
    answers = json.loads(run(extended, *predict, "--json").splitlines()[-1])
    assert answers["gesture"]["answer"] in ("wave", "chop", "crank")
    assert isinstance(answers["frequency"]["answer"], float)
    assert "frequency" in run(extended, *predict)


def test_the_contract_suite_finds_the_new_parts(extended):
    found = contracts(extended, " or ".join(PARTS.values()), "--collect-only")
    for table, kind in PARTS.items():
        assert f"test_what_is_absent_changes_nothing[{table}-{kind}]" in found


@pytest.mark.slow
def test_new_parts_may_lack_inputs_and_targets(extended):
    shown = contracts(extended, "absent and (pose_transformer or quantile)")
    assert "2 passed" in shown, shown[-3000:]


@pytest.mark.slow
def test_all_new_parts_keep_all_promises(extended):
    promises = len(re.findall("^def test_", (ROOT / "tests" / "test_contracts.py").read_text(), re.M))
    shown = contracts(extended, " or ".join(PARTS.values()), timeout=1800)
    assert f"{promises * len(PARTS)} passed" in shown, shown[-3000:]


def contracts(folder: pathlib.Path, expression: str, *words: str, timeout: int = 300) -> str:
    """Output of the copy's contract suite for the parts that the expression selects."""
    where = run(folder, "-c", "import mmjax; print(mmjax.__file__)")
    assert pathlib.Path(where.strip()).is_relative_to(folder.resolve())
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", *words]
    return run(folder, "-m", "pytest", *options, "tests/test_contracts.py", "-k", expression, timeout=timeout)
