"""Follows docs/own_data.md literally: a table with paths becomes a trained model."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_data.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE.partition("## Sources")[0], re.M | re.S)
    for line in block.splitlines()
    if line.startswith("mmjax ")
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> pathlib.Path:
    """Folder with the recipes and the example data."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "configs", folder / "configs")
    name, code = re.search(r"^### `(.*)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S).groups()
    (folder / name).write_text(code)
    subprocess.run([sys.executable, name], cwd=folder, check=True)
    return folder


def run(line: str, folder: pathlib.Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    words = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_five_commands():
    assert [command.split()[1] for command in COMMANDS] == ["prepare", "prepare", "train", "evaluate", "predict"]


def test_the_dry_run_and_the_preparation_say_what_the_page_says(project):
    dry = run(COMMANDS[0], project)
    assert not (project / "prepared" / "mine").exists()
    for line in re.search(r"```text\n(dataset\n.*?)…", PAGE, re.S)[1].splitlines():
        assert line in [shown.rstrip() for shown in dry.splitlines()]
    run(COMMANDS[1], project)
    report = json.loads((project / "prepared" / "mine" / "report.json").read_text())
    found = {name: facts["dropped"] for name, facts in report["findings"].items() if facts["drops"]}
    assert found == {"unreadable": 2, "blank": 1, "boilerplate": 1, "duplicate": 1}
    assert report["kept"] == 296


@pytest.mark.slow
def test_the_five_commands_train_a_model(project):
    outputs = [run(command, project) for command in COMMANDS]
    row = json.loads((project / "runs" / "mine" / "result.json").read_text())["test"]
    # Ten digits: chance level is a tenth.
    assert row["digit/accuracy"] > 0.7
    assert f"{row['digit/accuracy']:.4f}" in outputs[3]
    assert re.search(r"^digit\s+\d  with probability", outputs[4], re.M)
