"""A run is self-contained: it can be moved, opened without its data, and is protected from other data and processes."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mmjax.__main__ import main
from mmjax.data.dataset import Record
from mmjax.datasets.recorded import OtherData, RecordedDataset, describe, differences
from mmjax.errors import UserError
from mmjax.recipe import load_recipe
from mmjax.runs.lock import locked
from mmjax.runs.run import train
from mmjax.runs.workdir import check_same_config, read_record
from mmjax.tokens import TargetSpec
from mmjax.training.checkpoint import CheckpointHook

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = """
from ml_collections import ConfigDict

def get_config(folder):
    config = ConfigDict()
    config.data = {"name": "prepared", "path": folder, "inputs": {"note": {"length": 8}}}
    config.model = {"encoders": {"note": {"kind": "text_transformer", "width": 16, "depth": 1, "heads": 2}}}
    config.tasks = {"mood": {"kind": "classification", "reads": "encoders.note"}}
    config.optimizer = {"name": "adamw"}
    config.schedule = {"kind": "constant", "peak": 1e-2}
    config.train = {"steps": 4, "batch_size": 16}
    config.checkpoint = {"every": 2, "keep": 2, "best": None}
    config.evaluate = {"every": 0, "splits": ["test"], "subsets": False, "batch_size": 64}
    config.log = {"every": 1}
    return config
"""


def write_table(path: pathlib.Path, classes: dict[str, str], validation_labels: bool = True) -> None:
    draws = random.Random(1)
    words = ["red", "green", "blue", "tall", "short", "fast", "slow", "cat", "dog", "tree", "house", "river", "stone"]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["note", "mood", "split"])
        for number in range(120):
            split = ("train", "train", "validation", "test")[number % 4]
            name = draws.choice(list(classes))
            note = f"{classes[name]} {' '.join(draws.sample(words, 6))}"
            table.writerow([note, name if validation_labels or split != "validation" else "", split])


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> pathlib.Path:
    """Folder with a recipe, prepared data, and a run trained there with relative paths; HOME is `home` in it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "recipe.py").write_text(RECIPE)
    write_table(folder / "mood.csv", {"good": "sun", "bad": "rain"})
    write_table(folder / "fruit.csv", {"apple": "sun", "pear": "rain"})
    write_table(folder / "bare.csv", {"good": "sun", "bad": "rain"}, validation_labels=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        for name in ("mood", "fruit", "bare"):
            assert main(["prepare", f"--source={name}.csv", f"--output=prepared/{name}", "--keep=duplicate"]) == 0
        assert main(["train", "--config=recipe.py:prepared/mood", "--workdir=~/runs/x"]) == 0
    assert not (folder / "~").exists()
    return folder


@pytest.fixture
def run(project, tmp_path, monkeypatch) -> pathlib.Path:
    """Copy of the run, outside the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(project / "home" / "runs" / "x", tmp_path / "run")
    return tmp_path / "run"


def command(capsys, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def test_a_moved_run_answers_without_its_data_and_refuses_other_data(capsys, project, run, tmp_path):
    asked = ["predict", f"--workdir={run}", "--note=sun tree", "--json"]
    status, answer, err = command(capsys, *asked)
    assert status == 0 and json.loads(answer)["mood"]["answer"] in ("good", "bad") and err == ""
    # Move the run's data and put other data in its place.
    data, moved = project / "prepared" / "mood", tmp_path / "moved"
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["path"] == str(data)
    shutil.copytree(project / "prepared" / "fruit", tmp_path / "data")
    shutil.copytree(data, moved)
    config["data"]["path"] = str(tmp_path / "data")
    (run / "config.json").write_text(json.dumps(config))
    assert command(capsys, *asked) == (0, answer, "")
    resume = ["train", f"--config={project / 'recipe.py'}:{tmp_path / 'data'}", f"--workdir={run}"]
    for words in (["evaluate", f"--workdir={run}"], [*resume, "--config.train.steps=5"]):
        status, _, err = command(capsys, *words)
        assert status == 2 and err.count("\n") == 1
        assert "the classes of 'mood' are 'apple', 'pear', not 'bad', 'good'" in err and "checksum" in err
    shutil.rmtree(tmp_path / "data")
    assert command(capsys, *asked) == (0, answer, "")
    status, _, err = command(capsys, "evaluate", f"--workdir={run}")
    assert status == 2 and "is not a prepared dataset" in err
    # The same data is accepted at any path; data with another schema is refused.
    recorded = json.loads((run / "result.json").read_text())["test"]
    status, out, _ = command(capsys, "evaluate", f"--workdir={run}", f"--data={moved}", "--json")
    assert status == 0 and json.loads(out)["test"] == pytest.approx(recorded, abs=1e-6)
    status, _, err = command(capsys, "evaluate", f"--workdir={run}", f"--data={project / 'prepared' / 'fruit'}")
    assert status == 2 and "does not know: 'apple', 'pear'" in err
    resume[1] = f"--config={project / 'recipe.py'}:{moved}"
    assert command(capsys, *resume, "--config.train.steps=5")[0] == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 5


def test_a_lost_or_damaged_record_is_one_line(capsys, run):
    record = run / "preprocessing" / "dataset.json"
    for damage in (lambda: record.write_text("{"), lambda: record.write_text('{"inputs": 3}'), record.unlink):
        damage()
        status, _, err = command(capsys, "predict", f"--workdir={run}", "--note=sun")
        assert status == 2 and "dataset.json" in err and err.count("\n") == 1


def test_each_difference_is_named(run):
    recorded = read_record(run)
    assert differences(recorded, recorded) == []
    for change, message in (
        (lambda found: found.update(checksum="0"), "the checksum of the records is 0"),
        (lambda found: found["targets"]["mood"].update(classes=["good", "bad"]), "classes of 'mood' are 'good', 'bad'"),
        (lambda found: found["targets"]["mood"].update(mean=3.0), "mean of the target 'mood' is 3.0, not 0.0"),
        (lambda found: found["options"]["note"].update(mean=[1.0]), "mean of the input 'note' differ"),
        (lambda found: found["inputs"].update(note="image"), "the input 'note' is of kind 'image', not 'text'"),
        (lambda found: found["splits"].pop("test"), "the splits are 'train', 'validation', not"),
        (lambda found: found["targets"].pop("mood"), "the targets are none, not 'mood'"),
    ):
        found = json.loads(json.dumps(recorded))
        change(found)
        (problem,) = differences(recorded, found)
        assert message in problem


class Stub:
    """Dataset of one split with the given classes and options."""

    inputs, splits, checksum = {"x": "table"}, ("test",), "1"

    def __init__(self, classes, options, **spec):
        self.targets = {"y": TargetSpec((), "int32", tuple(classes)), "size": TargetSpec((), "float32", **spec)}
        self.dataset_options = {"x": options}

    def source(self, split):
        return [Record({"x": 0}, {"y": index, "size": 4.0}) for index in (*range(len(self.targets["y"].classes)), None)]


def test_other_data_is_read_with_the_classes_and_statistics_of_the_run():
    options = {"columns": ["a"], "mean": {"a": 1.0}}
    own = RecordedDataset(describe(Stub("abc", options, mean=1.0, std=2.0)))
    other = OtherData(own, Stub("cb", {"columns": ["a"], "mean": {"a": 9.0}}, mean=7.0))
    assert [record.targets["y"] for record in other.source("test")] == [2, 1, None]
    assert other.targets["size"] == TargetSpec((), "float32", mean=1.0, std=2.0)
    assert other.dataset_options["x"] == options
    with pytest.raises(UserError, match="does not know: 'd'"):
        OtherData(own, Stub("abcd", options))
    with pytest.raises(UserError, match="has different columns in the input 'x'"):
        OtherData(own, Stub("abc", {"columns": ["b"]}))
    assert np.issubdtype(type(other.source("test")[0].targets["y"]), np.int32)


def test_a_metric_without_targets_is_refused_before_the_start(capsys, project, tmp_path):
    words = [f"--config={project / 'recipe.py'}:{project / 'prepared' / 'bare'}", f"--workdir={tmp_path / 'run'}"]
    words += ["--config.evaluate.every=2", "--config.checkpoint.best=mood/accuracy"]
    status, _, err = command(capsys, "train", *words)
    assert status == 2 and "no example of 'validation' has the target 'mood'" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


HOLD_LOCK = """
import pathlib, sys, time
from rich.console import Console
from mmjax.runs.lock import locked
with locked(pathlib.Path(sys.argv[1]), Console()):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_process_in_a_workdir_is_refused_until_the_first_one_is_gone(capsys, project, run):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["train", f"--config={project / 'recipe.py'}:{project / 'prepared' / 'mood'}", f"--workdir={run}"]
    before = (run / "metrics.jsonl").read_bytes()
    holder = [sys.executable, "-c", HOLD_LOCK, str(run)]
    with subprocess.Popen(holder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        status, _, err = command(capsys, *words, "--config.train.steps=5")
        assert status == 2 and f"is in use: process {process.pid} on " in err and err.count("\n") == 1
        process.send_signal(signal.SIGKILL)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert command(capsys, *words, "--config.train.steps=5")[0] == 0


def test_a_lock_is_exclusive_within_a_process_and_ends_with_its_block(tmp_path):
    for _ in range(2):
        with (
            locked(tmp_path / "run", None),
            pytest.raises(UserError, match="is in use"),
            locked(tmp_path / "run", None),
        ):
            pass


def test_a_run_may_train_in_a_thread(project, tmp_path):
    recipe, results = load_recipe(f"{project / 'recipe.py'}:{project / 'prepared' / 'mood'}"), []
    recipe.train.steps = 1
    thread = threading.Thread(target=lambda: results.append(train(recipe, tmp_path / "run")))
    thread.start()
    thread.join()
    assert results and results[0]["steps"] == 1


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "preprocessing"])
def test_a_path_that_cannot_be_written_is_one_line(capsys, project, tmp_path, name):
    words = [
        "train",
        f"--config={project / 'recipe.py'}:{project / 'prepared' / 'mood'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    (tmp_path / "run").mkdir()
    shutil.copy(project / "home" / "runs" / "x" / "config.json", tmp_path / "run")
    shutil.copytree(project / "home" / "runs" / "x" / "preprocessing", tmp_path / "run" / "preprocessing")
    if name == "checkpoints":
        (tmp_path / "run" / name).write_text("")
    elif name == "preprocessing":
        shutil.rmtree(tmp_path / "run" / name)
        (tmp_path / "run" / name).write_text("")
    else:
        (tmp_path / "run" / name).mkdir()
    status, _, err = command(capsys, *words)
    assert status == 2 and name in err and err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ({"data": {"name": "a", "x": 1}, "a": 1}, {"data": {"name": "b", "x": 2}, "a": 2}, "data.name data.x a"),
        # The folder alone may differ, but names the dataset where other keys differ, too.
        ({"data": {"path": "a"}, "check": 1}, {"data": {"path": "b"}, "check": 2}, "data.path check"),
        (
            {"data": {"datasets": {"p": {"name": "a"}}}, "b": 1},
            {"data": {"datasets": {"p": {"name": "b"}}}, "b": 2},
            "data.datasets.p.name b",
        ),
        ({"data": {"augment": 1, "task": 1}}, {"data": {"augment": 2, "task": 2}}, "data.task data.augment"),
        ({str(n): n for n in range(5)}, {str(n): -1 for n in range(5)}, "0 1 2"),
    ],
)
def test_the_message_about_a_run_of_another_config_names_the_dataset_first(tmp_path, old, new, named):
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError) as caught:
        check_same_config(tmp_path, new, ("data.path",))
    found = [part.partition(" = ")[0].split()[-1] for part in caught.value.problem.split(", ") if " = " in part]
    assert found == named.split()
    assert ("and 2 more" in caught.value.problem) == (len(old) == 5)


def test_the_folder_of_the_data_alone_may_differ(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"path": "a"}}))
    check_same_config(tmp_path, {"data": {"path": "b"}}, ("data.path",))


@pytest.mark.parametrize("workdir", ["/proc/x", "/sys/x", "a" * 300, "~nobody-of-this-name/x"])
def test_an_impossible_workdir_is_one_line(capsys, project, workdir):
    words = [f"--config={project / 'recipe.py'}:{project / 'prepared' / 'mood'}", f"--workdir={workdir}"]
    status, _, err = command(capsys, "train", *words)
    assert status == 2 and err.startswith("mmjax: error: ") and err.count("\n") == 1


def at_step(monkeypatch, step: int, action) -> None:
    original = CheckpointHook.after_step

    def after_step(self, loop):
        if loop.step == step:
            # Saves are asynchronous; a deletion beside one that still writes has no certain result.
            self.checkpoints.wait()
            action()
        original(self, loop)

    monkeypatch.setattr(CheckpointHook, "after_step", after_step)


def test_a_deleted_workdir_ends_the_run_in_one_line(capsys, monkeypatch, project, tmp_path):
    def delete():
        # The save of step 2 may still create and rename files during the deletion.
        while (tmp_path / "run").exists():
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    at_step(monkeypatch, 3, delete)
    recipe = load_recipe(f"{project / 'recipe.py'}:{project / 'prepared' / 'mood'}")
    with pytest.raises(SystemExit, match=r"mmjax: stopped: .*run was deleted while the run was training$"):
        train(recipe, tmp_path / "run")


def test_deleted_checkpoints_cost_only_themselves(monkeypatch, caplog, project, tmp_path):
    folder = tmp_path / "run" / "checkpoints"

    def delete():
        # Saves are asynchronous; wait for the checkpoint, since deleting an unfinished one is another fault.
        while not (folder / "2").is_dir():
            time.sleep(0.05)
        shutil.rmtree(folder)

    at_step(monkeypatch, 3, delete)
    train(load_recipe(f"{project / 'recipe.py'}:{project / 'prepared' / 'mood'}"), tmp_path / "run")
    assert "checkpoints was deleted" in caplog.text
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from mmjax.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk_ends_the_run_in_one_line_and_it_resumes(capsys, project, tmp_path):
    words = [
        "train",
        f"--config={project / 'recipe.py'}:{project / 'prepared' / 'mood'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    program = [sys.executable, "-c", FULL_DISK, "12000", *words]
    # A generous limit for slow machines; the test is that the process ends.
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmjax: stopped: ") and "File too large; free some space" in line
    assert command(capsys, *words)[0] == 0
