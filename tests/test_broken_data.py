"""Prepared data with a missing, cut or damaged file: one error, or masked records that `result.json` counts."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from mmjax.__main__ import main
from mmjax.datasets import Prepared
from mmjax.errors import UserError
from mmjax.prepare.options import PrepareConfig
from mmjax.prepare.preparation import prepare
from mmjax.prepare.runners import Local
from mmjax.runs.run import train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """240 rows of a table, in shards of some kilobytes."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = [f"{a:.6f},{b:.6f},{'low' if a < b else 'high'}" for a, b in rng.normal(size=(240, 2))]
    (folder / "data.csv").write_text("\n".join(["a,b,level", *rows]) + "\n")
    options = PrepareConfig(source=str(folder / "data.csv"), target=("level",), shard_megabytes=0.002)
    return prepare(options, folder / "out", Local(1)).folder


@pytest.fixture
def data(prepared, tmp_path) -> pathlib.Path:
    """A copy to damage."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "data"))


def dataset(folder: pathlib.Path) -> Prepared:
    return Prepared(Prepared.Config(path=str(folder)))


def recipe(folder: pathlib.Path) -> ConfigDict:
    return ConfigDict(
        {
            "data": {"name": "prepared", "path": str(folder), "max_broken": 0.1},
            "model": {"encoders": {"table": {"kind": "table_transformer", "width": 8, "depth": 1, "heads": 1}}},
            "tasks": {"level": {"kind": "classification", "reads": "encoders.table"}},
            "optimizer": {"name": "adamw"},
            "schedule": {"kind": "constant", "peak": 1e-3},
            "train": {"steps": 14, "batch_size": 16},
            "evaluate": {"splits": ["validation", "test"], "subsets": False},
        }
    )


def damage(folder: pathlib.Path, split: str, index: int) -> int:
    """Overwrites a shard of a split with zeros of the same length; returns its number of records."""
    shard = json.loads((folder / "manifest.json").read_text())["shards"][split][index]
    (folder / shard["file"]).write_bytes(bytes(shard["bytes"]))
    return shard["examples"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_missing_or_cut_shard_is_an_error_before_training(data, split, tmp_path):
    shard = next(data.glob(f"*-{split}.array_record-00000-*"))
    content = shard.read_bytes()
    for found, words in ((content[:-1], "bytes instead of"), (None, "does not exist")):
        shard.unlink()
        if found is not None:
            shard.write_bytes(found)
        with pytest.raises(UserError, match=f"shard .* of {split!r} .*{words}.*restore it from a copy"):
            dataset(data).source(split)
    with pytest.raises(UserError, match="does not exist"):
        train(recipe(data), tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_damaged_shards_within_the_limit_are_masked_and_counted_per_split(data, tmp_path):
    broken = damage(data, "train", -1)
    assert 0 < broken <= 0.1 * len(dataset(data).source("train"))
    result = train(recipe(data), tmp_path / "run", Console(quiet=True))
    assert result["broken_records"] == {"train": broken, "validation": 0, "test": 0}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["broken_records"] == result["broken_records"]


def test_more_damage_than_the_limit_is_one_line(data, tmp_path):
    damage(data, "test", 0)
    with pytest.raises(UserError, match="records of 'test' are unreadable, more than the fraction data.max_broken"):
        train(recipe(data), tmp_path / "run", Console(quiet=True))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", b'{"version": 1}'),
        ("manifest.json", b"[]"),
        ("manifest.json", b"\xff\xfe"),
        ("dataset_info.json", b"{}"),
        ("dataset_info.json", None),
        ("features.json", b"\0" * 50),
    ],
)
def test_a_damaged_description_is_one_line(data, tmp_path, file, content, capsys):
    (data / file).unlink()
    if content is not None:
        (data / file).write_bytes(content)
    (tmp_path / "recipe.py").write_text(
        f"from tests import test_broken_data\nimport pathlib\n\n\ndef get_config():\n"
        f"    return test_broken_data.recipe(pathlib.Path({str(data)!r}))\n"
    )
    assert main(["prepare", f"--config={tmp_path / 'recipe.py'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_index_is_one_line(data):
    (data / "index" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="train.parquet' cannot be read"):
        dataset(data).columns("train")
