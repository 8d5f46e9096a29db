"""Invalid input: one line that says what is wrong and what would be right, exit code 2, and no file changed."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import operator
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mmjax import datasets
from mmjax.__main__ import main
from mmjax.config import build
from mmjax.errors import UserError
from mmjax.tokens import TargetSpec

ROOT = pathlib.Path(__file__).parents[1]

RECIPE = """
from tests import matched_recipe

def get_config():
    config = matched_recipe.get_config()
    # A recipe written with another type from the start, which a ConfigDict would refuse to be changed to.
    with config.ignore_type():
        {line}
    return config
"""

SMALLEST = """
config.data.modality_dropout = {}
        config.model = {"encoders": {"text": {"kind": "text_transformer", "width": 16, "depth": 1, "heads": 2}}}
        config.tasks = {"digit": {"kind": "classification", "reads": "encoders.text"}}
        config.schedule.warmup = 0
        config.train.steps = 2
        config.train.batch_size = 16
        config.evaluate.splits = []
""".strip()
"""A run that trains in seconds."""


@pytest.fixture(autouse=True)
def in_folder(monkeypatch, digits_cache):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    monkeypatch.chdir(ROOT)


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """Contents of all files below a folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def refused(capsys, folder: pathlib.Path, *words: str) -> str:
    """Runs a command that must fail with exit code 2 and leave `folder` unchanged; returns its one line of output."""
    before = snapshot(folder)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmjax: error: ") and err.count("\n") == 1, err
    assert "; " in err, "the message suggests no correction"
    assert snapshot(folder) == before
    return err


def write_recipe(folder: pathlib.Path, line: str) -> str:
    """Writes a recipe that contains `line`; returns the `--config` flag for it."""
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(line=line))
    return f"--config={path}"


WRONG_RECIPES = {
    # Keys and types.
    "config.trian = {}": "trian: unknown key 'trian'; did you mean 'train'?",
    "config.train.stpes = 3": "train.stpes: unknown key 'stpes'; did you mean 'steps'?",
    "del config['tasks']": "tasks: is missing; set it to a dict",
    "config.tasks = {}": "tasks: is empty",
    "config.train = 5": "train: 5 is not a section",
    "config.optimizer = None": "optimizer: None is not a section",
    "config.train.steps = 'many'": "train.steps: 'many' is a str; give an int",
    "config.train.steps = 2.5": "train.steps: 2.5 is a float",
    "config.seed = 'zero'": "seed: 'zero' is a str",
    "config.seed = object()": "use numbers, strings, lists and dicts only",
    "config.evaluate.splits = 'test'": "evaluate.splits: 'test' is a str; give a list, each entry a string",
    "config.model.encoders.image.kind = ['vit']": "model.encoders.image.kind: ['vit'] is a list",
    "config.data.inputs.image = 5": "data.inputs.image: 5 is an int; give a dict",
    "config.optimizer = {'name': 'sgd', 'momentum': 'x'}": "optimizer: Optax's sgd raises: ",
    "config.optimizer.learning_rate = 3.0": "optimizer.learning_rate: the schedule sets the learning rate; set",
    # Sizes.
    "config.train.steps = -5": "train.steps: -5 is out of range; give a value of at least 1",
    "config.train.batch_size = 0": "train.batch_size: 0 is out of range",
    "config.train.batch_size = 10**12": "train.batch_size: 1000000000000 is out of range",
    "config.seed = -1": "seed: -1 is out of range",
    "config.seed = 2**33": "seed: 8589934592 is out of range",
    "config.schedule.peak = float('nan')": "schedule.peak: nan is not finite",
    "config.schedule.peak = -1.0": "schedule.peak: -1.0 is out of range",
    "config.tasks.digit.weight = float('nan')": "tasks.digit.weight: nan is out of range",
    "config.schedule = {'kind': 'step', 'peak': 1e-3, 'factor': -1.0, 'boundaries': [3]}": "schedule.factor: -1.0 is",
    "config.data.inputs.audio.sample_rate = 8": "model.encoders.audio: hop_ms 10 is less than a sample at 8 Hz",
    "config.model.encoders.image.width = -8": "model.encoders.image.width: -8 is out of range",
    "config.model.encoders.image.variant = 'S/x'": "variant 'S/x' has no patch size after its '/'",
    "config.data.inputs.image.channels = True": "data.inputs.image.channels: True is not a choice",
    "raise SystemExit(3)": " raises SystemExit: 3; correct the recipe",
    "config.model.encoders.image.patch = 16": "patch 16 exceeds the image 8x8",
    "config.data.workers = -2": "data.workers: -2 is out of range",
    "config.data.modality_dropout.image = 1.5": "data.modality_dropout.image: 1.5 is out of range; give a value in",
    "config.checkpoint.every = 0": "checkpoint.every: 0 is out of range",
    "config.evaluate.every = -1": "evaluate.every: -1 is out of range",
    # Sizes that do not divide, on eight devices.
    "config.mesh.data = 3": "mesh: data=3 does not divide 8 device(s)",
    "config.mesh.fsdp = 16": "mesh: data=-1 x fsdp=16 does not divide 8 device(s)",
    "config.mesh.fsdp = -1": "has more than one -1; give all sizes but one",
    "config.mesh.tensor = 0": "has a size below 1",
    "config.mesh.dta = 8": "mesh.dta: unknown key 'dta'; did you mean 'data'?",
    "config.train.batch_size = 12": "train.batch_size: 12 is not divisible by the 8 batch shards of the mesh; choose",
    "config.evaluate.batch_size = 12": "evaluate.batch_size: 12 is not divisible by the 8 batch shards of the mesh",
    "config.train.accumulate = 3": "train.accumulate: 3 microbatches",
    "config.model.encoders.image.heads = 5": "model.encoders.image: width 48 is not divisible by 5 heads",
    "config.model.fusion = {'kind': 'cross_attention', 'width': 48, 'heads': 5}": "model.fusion: width 48",
    "config.tasks.digit.update({'pooling': 'attention', 'heads': 5})": "tasks.digit: width 48 is not divisible by 5",
    # Names.
    "config.data.name = 'digtis'": "data.name: unknown dataset 'digtis'; did you mean 'digits'?",
    "config.data.taks = 'matched'": "data.taks: unknown key 'taks'; did you mean 'task'?",
    "config.data.task = 'mached'": "data.task: 'mached' is not a choice; did you mean 'matched'?",
    "config.data.inputs.imgae = {}": "data.inputs.imgae: the data has no input 'imgae'; did you mean 'image'?",
    "config.data.inputs.image.sise = [8, 8]": "data.inputs.image.sise: unknown key 'sise'; did you mean 'size'?",
    "config.data.inputs.image.size = [8]": "data.inputs.image: size = (8,) has 1 numbers; give (height, width)",
    "config.data.inputs.audio.trim = 'much'": "data.inputs.audio.trim: 'much' is a str; give a number",
    "config.data.inputs.text.tokenizer = 'bites'": "/bites'; give 'bytes' or the path",
    "config.data.inputs.text.tokenizer = 'not/there.json'": "/not/there.json' does not exist; give the path of a",
    "config.data.modality_dropout.imgae = 0.1": "data.modality_dropout.imgae: the data has no input 'imgae'; did you",
    "config.data.missing_fraction = {'digti': 0.1}": "data.missing_fraction.digti: unknown input or target 'digti'",
    "config.model.encoders = {}": "encoders is empty",
    "config.model.encoders.imgae = {'kind': 'vit', 'variant': 'mu/4'}": "the data has no input 'imgae'",
    "config.model.encoders.image.kind = 'vti'": "model.encoders.image.kind: unknown kind 'vti'; did you mean 'vit'?",
    "config.model.encoders.text.kind = 'vit'; config.model.encoders.text.patch = 4": (
        "model.encoders.text.kind: 'vit' does not read [16] int32; choose 'text_transformer'"
    ),
    "config.model.fusion.kind = 'concatination'": "model.fusion.kind: unknown kind 'concatination'; did you mean 'conc",
    "config.model.fusion = {'kind': 'cross_attention', 'pairs': {'text': ['imgae']}}": "no encoder is named 'imgae'",
    "config.tasks.digit.kind = 'clasification'": "tasks.digit.kind: unknown kind 'clasification'; did you mean",
    "config.tasks.digit.reads = 'fusde'": "tasks.digit.reads: the model has no tokens named 'fusde'; did you mean",
    "config.tasks.seen.target = 'digti'": "tasks.seen.target: the data has no target 'digti'; did you mean 'digit'?",
    "config.tasks.digit.weight = 'heavy'": "tasks.digit.weight: 'heavy' is not a schedule",
    "config.tasks.digit.weight = {'kind': 'cosin'}": "tasks.digit.weight.kind: unknown kind 'cosin'",
    "config.optimizer.name = 'adamv'": "optimizer.name: Optax has no optimiser 'adamv'; did you mean 'adam",
    "config.optimizer.momentun = 0.9": "optimizer.momentun: unknown key 'momentun'",
    "config.optimizer.b2 = 'big'": "optimizer.b2: 'big' is a str; give a number",
    "config.optimizer.clip = 0": "optimizer.clip: 0.0 is out of range; give a value above 0, or None",
    "config.optimizer.transforms = [{'kind': 'adaptive_clip', 'clipping': 0.0}]": "transforms[0].clipping: 0.0 is",
    "config.optimizer.name = 'rprop'": "optimizer.name: 'rprop' needs gradients of the whole dataset",
    "config.optimizer.mask = True": "optimizer.mask: the weight decay mask follows from the parameters; set no_decay",
    "del config.schedule.peak": "schedule.peak: is missing; set it to a number",
    "config.schedule = {'kind': 'constant', 'peak': 1e-3, 'end': 0.1}": "schedule.end: unknown key 'end'",
    "config.schedule = {'kind': 'step', 'peak': 1e-3, 'boundaries': [3], 'end': 0.1}": "schedule.end: unknown key",
    "config.schedule = {'kind': 'step', 'peak': 1e-3, 'boundaries': [3, 3]}": "boundaries [3, 3] do not increase",
    "config.tasks.digit.weight = {'kind': 'step', 'peak': 1, 'boundaries': []}": "digit.weight: boundaries is empty",
    "config.schedule = {'kind': 'exponential', 'peak': 1e-3, 'end': 0}": "schedule.end: 0.0 is out of range",
    "config.optimizer.no_decay = ['(']": "optimizer: no_decay '('",
    "config.optimizer.transforms = [{'kind': 'adaptive'}]": "optimizer.transforms[0].kind: unknown kind 'adaptive'",
    "config.schedule.kind = 'cosin'": "schedule.kind: unknown kind 'cosin'; did you mean 'cosine'?",
    "config.schedule.kind = 'optax.cosine_decay'": "schedule.kind: Optax has no schedule 'cosine_decay'; did you",
    "config.schedule.warmup = 300": "schedule.warmup: 300 is not below the 300 steps; shorten the warmup",
    "config.precision.compute = 'float16'": "precision.compute: 'float16' is not a choice; did you mean",
    "config.train.estimator = {'kind': 'acumulated'}": "train.estimator.kind: unknown kind 'acumulated'",
    "config.train.loss_transforms = [{'kind': 'adversary'}]": "train.loss_transforms[0].kind: unknown kind",
    "config.train.hooks = [{'kind': 'early_stoping'}]": "train.hooks[0].kind: unknown kind 'early_stoping'",
    # Errors that would otherwise appear hours later.
    "config.evaluate.splits = ['test', 'acents']": "evaluate.splits[1]: unknown split 'acents'; did you mean 'acc",
    "config.evaluate.checkpoint = 'bset'": "evaluate.checkpoint: 'bset' is not a choice; did you mean 'best'?",
    "config.evaluate.checkpoint = 'best'": "evaluate.checkpoint: 'best' requires checkpoint.best",
    "config.evaluate.every = 9; config.checkpoint.every = 9; config.checkpoint.best = 'digit/acuracy'": (
        "checkpoint.best: unknown metric 'digit/acuracy'; did you mean 'digit/accuracy'?"
    ),
    "config.checkpoint.best = 'digit/accuracy'": "checkpoint.best: 'digit/accuracy' is never measured",
    "config.evaluate.every = 9; config.checkpoint.every = 6; config.checkpoint.best = 'digit/accuracy'": (
        "checkpoint.every: 6 is not a multiple of evaluate.every = 9, as checkpoint.best requires"
    ),
    "config.checkpoint.mode = 'maximum'": "checkpoint.mode: 'maximum' is not a choice; did you mean 'max'?",
    "config.evaluate.every = 9; config.train.hooks = [{'kind': 'early_stopping', 'metric': 'digit/lss'}]": (
        "train.hooks[0].metric: unknown metric 'digit/lss'; did you mean 'digit/loss'?"
    ),
}


@pytest.mark.parametrize(("line", "expected"), WRONG_RECIPES.items())
def test_a_wrong_recipe_is_refused(capsys, tmp_path, line, expected):
    recipe = write_recipe(tmp_path, line)
    assert expected in refused(capsys, tmp_path, "train", recipe, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.train.stpes=5", "--config.train.stpes: the recipe has no key 'stpes' here; did you mean 'steps'?"),
        ("--config.train.steps=many", "--config.train.steps=many: 'many' is not"),
        ("--config.train.steps=0", "train.steps: 0 is out of range"),
        ("--config.optimizer.name=adamv", "optimizer.name: Optax has no optimiser 'adamv'"),
        ("--config.mesh.fsdp=3", "mesh: data=-1 x fsdp=3 does not divide 8 device(s)"),
        ("--config.evaluate.splits=['tset']", "evaluate.splits[0]: unknown split 'tset'; did you mean 'test'?"),
    ],
)
def test_a_wrong_override_is_refused(capsys, tmp_path, override, expected):
    recipe = write_recipe(tmp_path, "pass")
    line = refused(capsys, tmp_path, "train", recipe, f"--workdir={tmp_path / 'run'}", override)
    assert expected in line


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_missing_recipe_is_refused(capsys, tmp_path, command):
    words = [f"--workdir={tmp_path / 'run'}"] if command == "train" else []
    assert "does not exist" in refused(capsys, tmp_path, command, f"--config={tmp_path / 'digits.py'}", *words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NoOptions:
    pass


class Empty:
    """Dataset whose listed splits are empty."""

    Config = _NoOptions
    splits = ("train", "test")
    inputs = {"text": "text"}
    targets = {"digit": TargetSpec((), "int32", ("0", "1"))}
    empty = "train"

    def __init__(self, config):
        pass

    def prepare(self):
        return pathlib.Path()

    def source(self, split):
        return [] if split == self.empty else [None]

    def ceilings(self, split):
        return {}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dataset_without_examples_is_refused(capsys, monkeypatch, tmp_path, split):
    monkeypatch.setitem(datasets.DATASETS, "empty", type("OneEmpty", (Empty,), {"empty": split}))
    line = "\n        ".join([SMALLEST, "config.data = {'name': 'empty'}", "config.evaluate.splits = ['test']"])
    recipe = write_recipe(tmp_path, line)
    expected = f"the split {split!r} has no examples"
    assert expected in refused(capsys, tmp_path, "train", recipe, f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_digits_without_espeak_are_refused_before_anything_is_written(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    words = [f"--workdir={tmp_path / 'run'}"] if command == "train" else []
    line = refused(capsys, tmp_path, command, write_recipe(tmp_path, SMALLEST), *words)
    assert "needs the package espeakng-loader; pip install 'mmjax[demo]'" in line


# Workdirs.


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, digits_cache) -> pathlib.Path:
    """Folder with a recipe and, in `run`, the workdir of a run of two steps. Read-only."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(digits_cache))
        patch.chdir(ROOT)
        assert main(["train", write_recipe(folder, SMALLEST), f"--workdir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def copied_run(small_run, tmp_path) -> list[str]:
    """Arguments that resume a copy of the run in `tmp_path / "run"`."""
    shutil.copytree(small_run, tmp_path, dirs_exist_ok=True)
    return ["train", f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.seed=1", "contains a run with seed = 0, not 1; give another workdir, or the config of that run"),
        ("--config.train.batch_size=32", "train.batch_size = 16, not 32"),
        ("--config.schedule.peak=0.5", "schedule.peak = 0.004, not 0.5"),
        ("--config.model.encoders.text.width=32", "model.encoders.text.width = 16, not 32"),
        ("--config.data.inputs.text.length=20", "data.inputs.text.length = 16, not 20"),
        ("--config.train.steps=1", "train.steps: 1 is less than step 2 of the newest checkpoint"),
    ],
)
def test_a_workdir_of_another_config_is_refused(capsys, tmp_path, copied_run, override, expected):
    assert expected in refused(capsys, tmp_path, *copied_run, override)


def test_a_number_of_steps_may_be_written_with_an_exponent(copied_run, tmp_path):
    assert main([*copied_run, "--config.train.steps=3e0"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["steps"] == 3
    recipe, train = tmp_path / "recipe.py", "{'steps': 4e0, 'batch_size': 1.6e1, 'accumulate': 1e0, 'hooks': []}"
    recipe.write_text(recipe.read_text().replace("return config", f"config.train = {train}; return config"))
    assert main(copied_run) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 4
    assert main(["evaluate", copied_run[-1], "--json"]) == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["--config.train.steps=3"],
        ["--config.mesh.data=2", "--config.mesh.fsdp=4"],
        ["--config.log.every=7"],
        ["--config.checkpoint.keep=5", "--config.checkpoint.every=1", "--config.train.steps=3"],
        pytest.param(["--config.data.workers=1", "--config.train.steps=3"], marks=pytest.mark.slow),
    ],
)
def test_mesh_workers_log_checkpoint_and_steps_may_change(capsys, tmp_path, copied_run, overrides):
    assert main([*copied_run, *overrides]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "resumed at step 2" in out
    # This schedule has no `steps` of its own, so it ends with the run.
    assert ("schedule now ends at step 3, not 2" in out) == ("--config.train.steps=3" in overrides)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == (3 if "--config.train.steps=3" in overrides else 2)


def test_a_workdir_that_is_no_folder_of_a_run_is_refused(capsys, tmp_path):
    recipe = write_recipe(tmp_path, SMALLEST)
    (tmp_path / "file").write_text("something")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"seed": ')
    for name, expected in {
        "file": "file is a file; give a folder",
        "file/below": "file is a file; give a folder",
        "other": "is not empty and contains no run; give an empty or a new folder",
        "broken": "config.json is not JSON",
    }.items():
        assert expected in refused(capsys, tmp_path, "train", recipe, f"--workdir={tmp_path / name}")
    line = refused(capsys, tmp_path, "train", recipe, "--workdir=gs://bucket/run")
    assert "is a URL; give a folder; a bucket can be mounted as one" in line


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_workdir_without_a_checkpoint_is_refused(capsys, tmp_path, copied_run, command):
    words = ["--text=seven"] if command == "predict" else []
    workdir = tmp_path / "run"
    assert "contains no run" in refused(capsys, tmp_path, command, f"--workdir={tmp_path / 'rnu'}")
    for name, content in (("bert", '{"model_type": "bert"}'), ("list", "[1]"), ("half", '{"data": {}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        assert "is not the config of an mmjax run" in refused(capsys, tmp_path, command, f"--workdir={tmp_path / name}")
    assert "--workdir: is missing" in refused(capsys, tmp_path, command, *words)
    for child in (workdir / "checkpoints").iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    assert "has no checkpoint" in refused(capsys, tmp_path, command, f"--workdir={workdir}", *words)
    (workdir / "checkpoints").rmdir()
    assert "has no checkpoint" in refused(capsys, tmp_path, command, f"--workdir={workdir}", *words)


def test_an_empty_list_of_splits_is_refused(capsys, small_run):
    line = refused(capsys, small_run, "evaluate", f"--workdir={small_run / 'run'}", "--split=")
    assert "--split: is empty; remove the flag" in line


def test_a_cache_where_no_folder_can_be_made_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MMJAX_CACHE", "/proc/mmjax")
    recipe = write_recipe(tmp_path, SMALLEST)
    assert "'/proc/mmjax/digits" in refused(capsys, tmp_path, "train", recipe, f"--workdir={tmp_path / 'run'}")


def test_a_run_whose_gradients_were_never_finite_fails(capsys, tmp_path):
    line = "\n        ".join([SMALLEST, "config.tasks.digit.weight = 3e38"])
    assert main(["train", write_recipe(tmp_path, line), f"--workdir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 of 2 steps were skipped" in error and "first at step 1 with" in error
    assert not (tmp_path / "run" / "result.json").exists()


# Inputs of `predict`.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--audio={0}/cut.wav"], "cut.wav' cannot be read as WAV"),
        (["--audio={0}/text.wav"], "text.wav' cannot be read as WAV"),
        (["--audio={0}/not_there.wav"], "not_there.wav' does not exist; give the path of a WAV file"),
        (["--image={0}/text.wav"], "text.wav' is not an image; give a PNG, JPEG or WebP file"),
        (["--image={0}"], "cannot be read"),
        ([], "no input is given; give --audio or --image or --text"),
        (["--picture=x.png"], "--picture: unknown flag; choose from '--audio', '--image'"),
        (["--input", "imgae=x.png"], "the run has no input 'imgae'; did you mean 'image'?"),
        (["--input", "image"], "is not NAME=VALUE; write --input audio=VALUE"),
        (["--text=one", "--input", "text=two"], "the input 'text' is given twice"),
    ],
)
def test_inputs_that_predict_cannot_read_are_refused(capsys, tmp_path, trained_run, words, expected):
    (tmp_path / "cut.wav").write_bytes(b"RIFF\xff\x00\x00\x00WAVEfmt \x10\x00")
    (tmp_path / "text.wav").write_text("not a sound")
    words = [word.format(tmp_path) for word in words]
    assert expected in refused(capsys, tmp_path, "predict", f"--workdir={trained_run}", *words)
    assert expected in refused(capsys, trained_run, "predict", f"--workdir={trained_run}", *words)


# In a separate process, since pytest would catch the exception.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", "--config={0}/recipe.py", "--workdir={0}/run", "--config.mesh.data=3"],
            "does not divide 8 device(s)",
        ),
        (["predict", "--workdir={1}", "--audio={0}/recipe.py"], "cannot be read as WAV"),
    ],
)
def test_a_process_writes_one_line_and_ends_with_2(tmp_path, trained_run, words, expected):
    write_recipe(tmp_path, "pass")
    before = snapshot(tmp_path)
    command = [sys.executable, "-m", "mmjax", *(word.format(tmp_path, trained_run) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr and done.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("module", "cls", "section", "old", "new"),
    [
        ("mmjax.experiment", "TrainConfig", {"steps": 1, "batch_size": 1}, "average", "ema"),
        ("mmjax.experiment", "DataConfig", {"name": "digits"}, "absent", "modality_dropout"),
        ("mmjax.evaluation", "EvaluateConfig", {}, "use", "checkpoint"),
        ("mmjax.datasets.mixture", "Mixture.Config", {}, "of", "datasets"),
        ("mmjax.modalities.augmentation.time_warp", "TimeWarp.Config", {}, "deviation", "std"),
        ("mmjax.training.loss_transforms.adversarial", "Adversarial.Config", {}, "share", "fraction"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(module, cls, section, old, new):
    config = operator.attrgetter(cls)(importlib.import_module(module))
    with pytest.raises(UserError, match=f"there.{old}: '{old}' was renamed; write '{new}'"):
        build(config, {**section, old: 0.5}, "there")
