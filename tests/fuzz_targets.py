"""Targets of the fuzz test: each makes a wrong input, gives it to mmjax, and checks the outcome.

A target returns "accepted" or "refused", and raises an exception for anything else: an error that is no `UserError` and
no finding, two outcomes of one input, a record that `predict` reads otherwise than `prepare`, or a file read or written
outside the input's folder.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import gzip
import io
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.__main__ import main
from mmjax.commands import COMMANDS
from mmjax.config import convert_value_errors
from mmjax.data.pipeline import Pipeline
from mmjax.datasets import Prepared
from mmjax.errors import RunError, UserError
from mmjax.modalities import MODALITIES
from mmjax.prepare.columns import Column, Layout
from mmjax.prepare.examine import examine_value, read_rows
from mmjax.prepare.job import Job
from mmjax.prepare.kinds import KINDS, Unreadable
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.prepare.sources import Row, open_source
from tests import fuzz_inputs as inputs

ROWS = 6
SECRET_SIZE = (43, 41)
"""Size of an image outside the input's folder, which no record may have."""

Rng = np.random.Generator


@functools.cache
def corpus() -> list[tuple[str, str, bytes]]:
    """Valid files of all kinds."""
    return inputs.files(np.random.default_rng(0))


@functools.cache
def pictures() -> list[bytes]:
    """PNG files of the rows of the datasets."""
    return [inputs.image(np.random.default_rng(row)) for row in range(ROWS)]


# Single files.


def files(rng: Rng, folder: pathlib.Path) -> str:
    """A file of any kind: `prepare` gives the same record twice, and `predict` reads that record."""
    kind, name, data = corpus()[rng.integers(len(corpus()))]
    other = corpus()[rng.integers(len(corpus()))]
    if rng.random() < 0.05:
        name = f"x{pathlib.PurePath(other[1]).suffix}"
    path = folder / name
    path.write_bytes(inputs.mutate(rng, data, name, other[2]))
    source = open_source(str(folder / "data.csv"), "manifest")
    layout = Layout((Column("x", kind, ("x",), paths=True),), "", "", "")
    job = Job(source, layout, PrepareConfig(source=str(folder / "data.csv")), folder, 1)
    first, second = (_outcome(job, Row("0", {"x": name}), kind, path) for _ in range(2))
    _check_equal(first, second, "two readings")
    return "refused" if first == "refused" else "accepted"


def _outcome(job: Job, row: Row, kind: str, path: pathlib.Path) -> Any:
    """Processed values of a record, or "refused"; compares them with those of `predict`."""
    (column,) = job.layout.columns
    try:
        measured, _ = examine_value(job, row, column)
        raw = job.decode(row, column)
    except Unreadable:
        return "refused"
    assert measured is not None
    handler = job.kinds["x"]
    handler.faults(measured)
    numbers = {name: np.asarray([value], float) for name, value in measured.items() if not isinstance(value, str)}
    summary = handler.summarise(numbers, {}) | handler.summarise_training(numbers)
    assert isinstance(handler.show(handler.rendered(raw, summary)), str)
    restored = handler.restore(handler.stored(raw, summary))
    if kind == "text":
        return restored
    cls = MODALITIES[kind]
    modality = cls(cls.Config(**handler.dataset_options(summary, numbers)))
    stored = _processed(modality, lambda: restored)
    predicted = _processed(modality, lambda: modality.read(str(path), "--x"))
    _check_equal(stored, predicted, "prepare and predict")
    return stored


def _processed(modality: Any, read: Callable[[], Any]) -> Any:
    """Values and mask, or "refused"."""
    try:
        return modality.process(read())
    except (UserError, ValueError):
        return "refused"


def _check_equal(first: Any, second: Any, what: str) -> None:
    if isinstance(first, tuple) and isinstance(second, tuple):
        same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    else:
        same = type(first) is type(second) and first == second
    if not same:
        shown = [value if isinstance(value, str) else "a record" for value in (first, second)]
        raise AssertionError(f"{what} differ: {shown[0]!r}, {shown[1]!r}")


# Datasets.


def datasets(rng: Rng, folder: pathlib.Path) -> str:
    """A folder or manifest with one damaged file: the other rows are measured as without the damage."""
    row, keys = int(rng.integers(ROWS)), "k"
    for name in ("sound", "hurt"):
        table = _write_manifest(folder / name)
        if name == "hurt":
            (folder / name / f"{row}.png").write_bytes(inputs.mutate(rng, pictures()[row], "x.png", corpus()[4][2]))
        if row % 2:
            table.unlink()
            keys = ""
    _prepare(folder / "sound", folder / "out_sound", dry_run=True)
    outcome = _prepare(folder / "hurt", folder / "out", dry_run=True)
    sound, hurt = _measured(folder / "out_sound"), _measured(folder / "out")
    assert len(sound) == ROWS
    for key, values in sound.items():
        assert outcome == "refused" or key == f"{keys}{row}" or hurt[key] == values, f"row {key} changed"
    return outcome


def manifests(rng: Rng, folder: pathlib.Path) -> str:
    """A table, damaged in its bytes or with odd cells: nothing outside its folder becomes a record."""
    suffix = str(rng.choice(["csv", "tsv", "jsonl", "parquet"]))
    path = _write_manifest(folder / "in", suffix, rng)
    if rng.random() < 0.6:
        path.write_bytes(inputs.mutate(rng, path.read_bytes(), path.name, b'{"key": 1}\n[1]\n"x",;\t|'))
    return _prepare(path, folder / "out", dry_run=rng.random() < 0.7)


def archives(rng: Rng, folder: pathlib.Path) -> str:
    """A damaged tar file, plain or gzipped."""
    members = [
        member for row, data in enumerate(pictures()) for member in ((f"{row}.png", data), (f"{row}.cls", b"ab"))
    ]
    data = inputs.archive(members, rng)
    if rng.random() < 0.8:
        data = inputs.mutate(rng, data, "x.tar", pictures()[0])
    path = folder / "in" / "x.tar"
    path.parent.mkdir()
    if rng.random() < 0.3:
        path, data = path.with_suffix(".tar.gz"), gzip.compress(data, 1)
        data = inputs.mutate(rng, data) if rng.random() < 0.5 else data
    path.write_bytes(data)
    return _prepare(path, folder / "out", dry_run=rng.random() < 0.7)


def _write_manifest(folder: pathlib.Path, suffix: str = "csv", rng: Rng | None = None) -> pathlib.Path:
    """Six rows with a picture, a note, a number and a class; with `rng`, odd cells among them."""
    folder.mkdir()
    for row, data in enumerate(pictures()):
        (folder / f"{row}.png").write_bytes(data)
    rows: list[dict[str, Any]] = [
        {
            "key": f"k{row}",
            "image": f"{row}.png",
            "note": f"words about number {row * row}",
            "size": row / 4,
            "kind": "ab"[row % 2],
        }
        for row in range(ROWS)
    ]
    if rng is not None:
        os.mkfifo(folder / "pipe.png")
        (folder / "link.png").symlink_to("../secret.png")
        (folder / "folder.png").mkdir()
        for _ in range(rng.integers(0, 4)):
            row, name = rows[rng.integers(ROWS)], str(rng.choice(list(rows[0])))
            odd = inputs.NASTY_VALUES if suffix == "jsonl" and rng.random() < 0.5 else inputs.NASTY_TEXT
            row[name] = odd[rng.integers(len(odd))]
        if rng.random() < 0.1:
            name = inputs.NASTY_TEXT[rng.integers(len(inputs.NASTY_TEXT))]
            rows = [{name if key == "note" else key: value for key, value in row.items()} for row in rows]
    path = folder / f"data.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "parquet":
        _write_parquet(path, rows)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))
    return path


def _write_parquet(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        name: [
            value if isinstance(value := row[name], float) else str(value).encode("utf-8", "replace").decode()
            for row in rows
        ]
        for name in rows[0]
    }
    plain = {
        name: values if all(isinstance(v, float) for v in values) else list(map(str, values))
        for name, values in columns.items()
    }
    pyarrow.parquet.write_table(
        pyarrow.table({name.encode("utf-8", "replace").decode(): plain[name] for name in plain}), path
    )


def _prepare(source: pathlib.Path, output: pathlib.Path, dry_run: bool) -> str:
    try:
        prepare(PrepareConfig(source=str(source)), output, Local(1), dry_run=dry_run)
    except UserError:
        return "refused"
    for measured in _measured(output).values():
        size = [(values or {}).get(name) for values in measured.values() for name in ("height", "width")]
        assert tuple(size[:2]) != SECRET_SIZE, "an image outside the folder is in the dataset"
    if not dry_run:
        dataset = Prepared(Prepared.Config(path=str(output)))
        for split in dataset.splits:
            records = dataset.source(split)
            for index in range(len(records)):
                _ = records[index]
    return "accepted"


def _measured(output: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Measurements of the rows of a dry run by key, {} otherwise."""
    work = output.with_name(output.name + ".partial") / "work"
    chunks = sorted((work / "examined").glob("*.npz")) if work.exists() else []
    return {row.key: row.measured for chunk in range(len(chunks)) for row in read_rows(work, chunk)}


# Prepared data, tokenizers and workdirs.


def prepared(rng: Rng, folder: pathlib.Path) -> str:
    """A prepared folder with one damaged file: all batches, with masked records, or one error."""
    data = pathlib.Path(shutil.copytree(_template("prepared"), folder / "data"))
    path = _damage_one(rng, data)
    try:
        dataset = Prepared(Prepared.Config(path=str(data)))
        modalities = {
            name: MODALITIES[kind](MODALITIES[kind].Config(**dataset.dataset_options.get(name, {})))
            for name, kind in dataset.inputs.items()
        }
        pipeline = Pipeline(dataset, modalities, max_broken=1.0)
        for split in dataset.splits:
            with pipeline.evaluation_batches(split, 4) as batches:
                for batch in batches:
                    assert all(np.isfinite(np.asarray(x.values)).all() for x in batch.inputs.values()), path
            dataset.columns(split)
    except UserError:
        return "refused"
    return "accepted"


def tokenizers(rng: Rng, folder: pathlib.Path) -> str:
    """A damaged tokenizer file."""
    template = _template("prepared") / "tokenizers" / "note.json"
    path = folder / "x.json"
    path.write_bytes(inputs.mutate_json(rng, template.read_bytes()))
    cls = MODALITIES["text"]
    try:
        with convert_value_errors("data.inputs.note"):
            modality = cls(cls.Config(tokenizer=str(path)))
        assert modality.process("words about number 3")[1].any()
    except UserError:
        return "refused"
    return "accepted"


def workdirs(rng: Rng, folder: pathlib.Path) -> str:
    """A workdir with one damaged file: the parameters are those that were saved, or one error."""
    from mmjax.runs.run import restore
    from mmjax.training.metrics_log import MetricsLog, read_rows
    from mmjax.training.state import parameters_hash

    workdir = pathlib.Path(shutil.copytree(_template("run"), folder / "run"))
    path = _damage_one(rng, workdir)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            if path.name == "metrics.jsonl" and path.exists():
                read_rows(workdir)
                MetricsLog(workdir, 1).close()
            state = restore(workdir)[1]
        except (UserError, RunError):
            return "refused"
    expected = json.loads((_template("run") / "result.json").read_text())["parameters_hash"]
    assert parameters_hash(state.parameters) == expected, f"{path.name} changed the parameters"
    return "accepted"


def _damage_one(rng: Rng, folder: pathlib.Path) -> pathlib.Path:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = paths[rng.integers(len(paths))]
    if rng.random() < 0.1:
        path.unlink()
        if rng.random() < 0.3:
            path.mkdir()
    elif path.suffix == ".json":
        path.write_bytes(inputs.mutate_json(rng, path.read_bytes()))
    else:
        path.write_bytes(inputs.mutate(rng, path.read_bytes()))
    return path


# Configs and command lines.


def recipe() -> dict[str, Any]:
    """A small recipe with most sections."""
    trunk = {"width": 8, "depth": 1, "heads": 2}
    return {
        "seed": 1,
        "data": {
            "name": "synthetic", "image": [8, 8, 3], "letters": 8, "recording": 0.1, "examples": 16,
            "inputs": {"image": {"size": [8, 8]}, "text": {"length": 8}},
            "modality_dropout": {"image": 0.1},
            "augment": {"image": [{"kind": "flip"}]},
        },
        "model": {
            "encoders": {"image": {"kind": "vit", "patch": 4, **trunk}, "text": {"kind": "text_transformer", **trunk}},
            "fusion": {"kind": "concatenation", "width": 8},
        },
        "tasks": {"label": {"kind": "classification", "weight": 1.0}},
        "optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 1.0},
        "schedule": {"kind": "cosine", "peak": 1e-3, "warmup": 1},
        "train": {"steps": 4, "batch_size": 8},
        "mesh": {"data": -1},
        "precision": {"compute": "float32"},
        "checkpoint": {"every": 2, "keep": 1},
        "evaluate": {"every": 2, "splits": ["test"], "subsets": False},
        "log": {"every": 1},
    }  # fmt: skip


def configs(rng: Rng, folder: pathlib.Path) -> str:
    """A config with one or two odd values."""
    from mmjax.experiment import Experiment

    raw = copy.deepcopy(recipe())
    for _ in range(rng.integers(1, 3)):
        section = str(rng.choice(list(raw)))
        raw[section] = inputs.mutate_value(rng, raw[section])
    if rng.random() < 0.1:
        raw = inputs.mutate_value(rng, raw)
    try:
        Experiment(raw)
    except UserError:
        return "refused"
    return "accepted"


def commands(rng: Rng, folder: pathlib.Path) -> str:
    """A command line with odd flags and values. Training and planning end before the first step."""
    (folder / "recipe.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config(*argument):\n    return ConfigDict({recipe()!r})\n"
    )
    _write_manifest(folder / "in", "csv", rng)
    (folder / "empty").mkdir()
    shutil.copytree(_template("run"), folder / "run")
    argv = _command_line(rng)
    out, err = io.StringIO(), io.StringIO()
    home = pathlib.Path.cwd()
    try:
        os.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _without_training():
            code = main(argv)
    except SystemExit as error:
        code = 1 if isinstance(error.code, str) else error.code
    except Exception as error:
        raise AssertionError(f"{argv!r} raises {type(error).__name__}: {error}") from error
    finally:
        os.chdir(home)
    assert code in (0, 1, 2), (argv, code)
    printed = out.getvalue() + err.getvalue()
    assert "Traceback" not in printed, (argv, printed[-400:])
    if code == 2:
        last = err.getvalue().rstrip("\n").rpartition("\n")[2]
        assert last.startswith("mmjax: error: ") and "; " in last, (argv, last)
    return "refused" if code else "accepted"


_FLAGS = {
    "train": ["config=recipe.py", "workdir=new", "coordinator=localhost:1", "process_count=1", "process_id=0"],
    "evaluate": ["workdir=run", "split=test", "data=in", "without=image", "subsets", "json"],
    "predict": ["workdir=run", "image=in/0.png", "text=words", "input=image=in/1.png", "json"],
    "plan": [
        "config=recipe.py",
        "topology=v5e:2x2",
        "num_slices=1",
        "batch_per_chip=4",
        "examples=1e6",
        "price=2",
        "hlo=x",
    ],
    "prepare": [
        *("source=in", "output=out", "columns=image=image", "target=kind", "splits=train=0.5,test=0.5", "keep=blank"),
        *("key=key", "split=kind", "group=kind", "folds=2", "seed=1", "set=checks.image.blank=3", "format=manifest"),
        *(
            "workers=1",
            "runner=local",
            "alignment=run",
            "train_tokenizer=300",
            "dry_run",
            "stratify=kind",
            "config=recipe.py",
        ),
    ],
    "reproduce": ["seeds=0", "workdir=new", "arms=a", "folds=b", "jobs=1", "quick", "record", "all"],
    "doctor": ["json"],
    "init": ["output=new"],
}


def _command_line(rng: Rng) -> list[str]:
    weights = np.asarray([1 if name == "doctor" else 6 for name in COMMANDS], float)
    name = str(rng.choice(list(COMMANDS), p=weights / weights.sum()))
    known = _FLAGS[name]
    flags = [known[0], *known[1:2]] + [str(flag) for flag in rng.choice(known, rng.integers(0, 4))]
    if name in ("train", "plan") or name == "prepare" and rng.random() < 0.2:
        keys = [
            f"config.{section}.{key}"
            for section, values in recipe().items()
            if isinstance(values, dict)
            for key in values
        ]
        flags += [f"{rng.choice(keys)}=1" for _ in range(rng.integers(0, 3))]
    argv = []
    for index, flag in enumerate(flags):
        key, equals, value = flag.partition("=")
        # Without an odd value in the required flags, some commands would do all their work.
        if rng.random() < 0.35 or index == len(flags) - 1:
            value = inputs.NASTY_TEXT[rng.integers(len(inputs.NASTY_TEXT))]
        if rng.random() < 0.05:
            key = inputs.NASTY_TEXT[rng.integers(len(inputs.NASTY_TEXT))]
        argv.append(f"--{key}={value}" if equals or rng.random() < 0.2 else f"--{key}")
    argv += [inputs.NASTY_TEXT[rng.integers(len(inputs.NASTY_TEXT))]] * int(rng.random() < 0.1)
    if name == "init" or name == "reproduce":
        argv.insert(0, str(rng.choice(["digits", "experiments/01_digits", *inputs.NASTY_TEXT[:60]])))
    return [name if rng.random() < 0.97 else inputs.NASTY_TEXT[rng.integers(len(inputs.NASTY_TEXT))], *argv]


@contextlib.contextmanager
def _without_training():
    """Replaces what takes minutes: training, compilation for other devices, and waiting for other processes."""
    import mmjax.planning.plan
    import mmjax.prepare.runners
    import mmjax.processes.start
    import mmjax.runs.reproduction
    import mmjax.runs.run

    def stop(*arguments, **options):
        raise UserError("fuzz", "stopped", "nothing")

    replaced = [
        (mmjax.runs.run, "_train", lambda *arguments: {}),
        (mmjax.runs.reproduction, "train_all", stop),
        (mmjax.runs.reproduction, "_run_check", lambda *arguments: True),
        (mmjax.planning.plan, "make_plan", stop),
        (mmjax.processes.start, "connected", stop),
        (mmjax.prepare.runners, "visible_cores", lambda: 1),
    ]
    originals = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    environment, path = dict(os.environ), list(sys.path)
    for module, name, function in replaced:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path


# Templates, made once.

_TEMPLATES = "MMJAX_FUZZ_TEMPLATES"


def _template(name: str) -> pathlib.Path:
    return pathlib.Path(os.environ[_TEMPLATES]) / name


def write_templates(folder: pathlib.Path) -> None:
    """Writes the folders that `prepared`, `tokenizers`, `workdirs` and `commands` copy, and the secret image."""
    from mmjax.datasets.recorded import describe
    from mmjax.experiment import Experiment
    from mmjax.files import write_json
    from mmjax.runs.workdir import write_config
    from mmjax.training.checkpoint import Checkpoints
    from mmjax.training.state import parameters_hash

    os.environ[_TEMPLATES] = str(folder)
    source = _write_manifest(folder / "in")
    options = PrepareConfig(source=str(source), train_tokenizer=300, splits={"train": 0.7, "test": 0.3})
    prepare(options, folder / "prepared", Local(1))
    experiment = Experiment(recipe())
    write_config(folder / "run", experiment.raw, experiment.modalities, describe(experiment.dataset))
    state, checkpoints = experiment.init_state(), Checkpoints(folder / "run", experiment.config.checkpoint)
    checkpoints.save(2, state)
    checkpoints.close()
    write_json(folder / "run" / "result.json", {"parameters_hash": parameters_hash(state.parameters)})
    rows = [{"step": step, "split": "train", "loss": 1.0} for step in range(3)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TARGETS: dict[str, tuple[float, Callable[[Rng, pathlib.Path], str]]] = {
    "files": (0.56, files),
    "datasets": (0.04, datasets),
    "manifests": (0.12, manifests),
    "archives": (0.05, archives),
    "prepared": (0.05, prepared),
    "tokenizers": (0.06, tokenizers),
    "workdirs": (0.03, workdirs),
    "configs": (0.04, configs),
    "commands": (0.05, commands),
}
"""{name: (share of the inputs, target)}."""

assert set(KINDS) >= {"image", "audio", "series", "points", "video", "text"}
