"""Mixtures, sampling weights and filters: inputs that a dataset lacks are absent; sampling never reads records."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import ClassVar

import jax
import numpy as np
import pytest

from mmjax.__main__ import main
from mmjax.config import build
from mmjax.data.dataset import Record
from mmjax.data.pipeline import Pipeline, fingerprint
from mmjax.data.sampling import FilterConfig, SamplingConfig
from mmjax.datasets import DATASETS, make_dataset
from mmjax.datasets.mixture import PartConfig
from mmjax.errors import UserError
from mmjax.modalities import Image, Text
from mmjax.tokens import TargetSpec


class Pictures:
    """Dataset whose record i is an image of value i."""

    inputs: ClassVar = {"picture": "image"}
    splits: ClassVar = ("train", "test")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Size, and number of classes."""

        size: int = 12
        classes: int = 3
        columns: tuple[str, ...] = ()

    def __init__(self, config: Config):
        self.config = config
        # Dataset options as of a table; only `mean` may differ between datasets.
        self.dataset_options = {name: {"columns": config.columns, "mean": config.size} for name in self.inputs}
        self.targets = {"label": TargetSpec((), "int32", tuple(map(str, range(config.classes))))}

    def prepare(self) -> pathlib.Path:
        return pathlib.Path(".")

    def source(self, split):
        return self

    def columns(self, split):
        numbers = np.arange(self.config.size)
        return {"label": np.array([str(number % self.config.classes) for number in numbers]), "length": numbers * 1.0}

    def ceilings(self, split):
        return {"label": {"picture": 1.0}}

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        if not 0 <= index < self.config.size:
            raise IndexError(index)
        return Record({"picture": np.full((2, 2), index, np.uint8)}, {"label": index % self.config.classes})


class Words(Pictures):
    """Dataset whose record i is the text "i"."""

    inputs: ClassVar = {"words": "text"}

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return Record({"words": f"{index:02}"}, record.targets)


class Validated(Words):
    """Words with a validation split."""

    splits: ClassVar = ("train", "validation")


class Both(Words):
    """Words with a second target."""

    def __init__(self, config):
        super().__init__(config)
        self.targets = {**self.targets, "amount": TargetSpec((), "float32", mean=float(config.size))}


DATASETS_HERE = {"pictures": Pictures, "words": Words, "validated": Validated, "both": Both}
SECTIONS = {
    "seen": {"name": "pictures"},
    "read": {"name": "words", "size": 30, "classes": 5, "rename": {"label": "topic"}},
    "other": {"name": "validated", "size": 7},
}
MODALITIES = {
    "picture": Image(Image.Config(size=(2, 2), channels=1, mean=(0.0,), std=(1.0,))),
    "words": Text(Text.Config(length=3)),
}


@pytest.fixture(autouse=True)
def datasets(monkeypatch):
    for name, cls in DATASETS_HERE.items():
        monkeypatch.setitem(DATASETS, name, cls)


def mixture(datasets=None):
    return make_dataset({"name": "mixture", "datasets": SECTIONS if datasets is None else datasets}, PartConfig)[1]


def pipeline(dataset=None, **options) -> Pipeline:
    return Pipeline(mixture() if dataset is None else dataset, MODALITIES, **{"seed": 3, **options})


def dataset_and_index(batch) -> list[tuple[str, int]]:
    """(dataset, record index) of each row, decoded from its inputs."""
    found = []
    for row in range(batch.size):
        picture, words = batch.inputs["picture"], batch.inputs["words"]
        if bool(picture.present[row]):
            assert not words.present[row]
            found.append(("seen", round(float(picture.values[row, 0, 0, 0]) * 255)))
        else:
            topic = batch.targets["topic"].weight[row] > 0
            # Byte ids come after the special tokens.
            text = "".join(chr(value) for value in (words.values[row][words.mask[row]] - OFFSET) if 48 <= value <= 57)
            found.append(("read" if topic else "other", int(text)))
    return found


OFFSET = int(MODALITIES["words"].process("0")[0][0]) - ord("0")


class TestMixture:
    def test_a_mixture_has_the_inputs_targets_and_splits_of_its_datasets(self):
        made = mixture()
        assert dict(made.inputs) == {"picture": "image", "words": "text"}
        assert {name: len(spec.classes) for name, spec in made.targets.items()} == {"label": 3, "topic": 5}
        assert made.splits[:3] == ("train", "test", "validation") and made.splits[3] == "seen/train"
        sizes = {split: len(made.source(split)) for split in made.splits}
        assert sizes["train"] == 12 + 30 + 7 and sizes["test"] == 42 and sizes["validation"] == 7
        assert sizes["read/test"] == 30 and "other/test" not in sizes
        assert made.inputs_of("test") == {"picture", "words"} and made.inputs_of("read/test") == {"words"}
        assert made.ceilings("read/test") == {"topic": {"picture": 1.0}} and made.ceilings("test") == {}

    def test_statistics_may_differ_and_those_of_the_first_dataset_apply(self):
        made = mixture({"a": {"name": "both", "size": 9}, "b": {"name": "both", "size": 5}})
        assert made.targets["amount"].mean == 9.0 and made.dataset_options["words"]["mean"] == 9

    def test_records_are_those_of_the_datasets_one_after_the_other(self):
        source = mixture().source("train")
        records = [source[number] for number in (0, 11, 12, 41, 42, 48, 13)]
        assert [dict(record.inputs) for record in records[2:]] == [
            {"words": text} for text in ("00", "29", "00", "06", "01")
        ]
        assert [int(record.inputs["picture"][0, 0]) for record in records[:2]] == [0, 11]
        assert [dict(record.targets) for record in records] == [
            {"label": 0}, {"label": 2}, {"topic": 0}, {"topic": 4}, {"label": 0}, {"label": 0}, {"topic": 1},
        ]  # fmt: skip

    def test_an_epoch_holds_each_record_once_and_what_a_dataset_lacks_is_absent(self):
        pipe = pipeline()
        seen = [one for step in range(7) for one in dataset_and_index(pipe.batch_at("train", 7, step))]
        assert sorted(seen) == sorted([("seen", n) for n in range(12)] + [("read", n) for n in range(30)] + [
            ("other", n) for n in range(7)
        ])  # fmt: skip

    @pytest.mark.parametrize(
        "of, said",
        [
            ({}, "data: datasets is empty; name at least one dataset"),
            ({"a/b": {"name": "words"}}, "data: a dataset is named 'a/b'; use a non-empty name without a slash"),
            ({"a": {"name": "wrods"}}, "data.datasets.a.name: unknown dataset 'wrods'; did you mean 'words'?"),
            ({"a": {"name": "words", "sizes": 3}}, "data.datasets.a.sizes: unknown key 'sizes'; did you mean 'size'?"),
            (
                {"a": {"name": "words", "rename": {"wrods": "x"}}},
                "data.datasets.a.rename.wrods: unknown input or target 'wrods'",
            ),
            (
                {"a": {"name": "words"}, "b": {"name": "words", "classes": 4}},
                "data.datasets.b: 'label' of 'b' differs from 'label' of 'a'; rename one",
            ),
            (
                {"a": {"name": "words", "columns": ["x"]}, "b": {"name": "words", "columns": ["y"]}},
                "data.datasets.b: 'words' of 'b' differs from 'words' of 'a'; rename one",
            ),
            (
                {"a": {"name": "mixture", "datasets": {"b": {"name": "words"}}}},
                "data.datasets.a.name: mixtures cannot be nested",
            ),
            (
                {"a": {"name": "both", "rename": {"label": "amount"}}},
                "data.datasets.a.rename: two inputs or two targets would be named 'amount'; choose unique names",
            ),
        ],
    )
    def test_a_wrong_mixture_is_refused_in_one_line(self, of, said):
        with pytest.raises(UserError) as error:
            mixture(of)
        assert str(error.value).startswith(said)


class TestSampling:
    def test_weights_set_the_proportions_of_each_batch(self):
        sampling = build(SamplingConfig, {"weights": {"seen": 1, "read": 2, "other": 1}}, "data.sampling")
        pipe = pipeline(sampling=sampling)
        for step in range(5):
            counts = collections.Counter(name for name, _ in dataset_and_index(pipe.batch_at("train", 16, step)))
            assert counts == {"seen": 4, "read": 8, "other": 4}

    def test_a_curriculum_moves_from_one_dataset_to_the_next(self):
        weights = {"seen": [[0, 1], [10, 0]], "read": [[0, 0], [10, 1]], "other": 0}
        pipe = pipeline(sampling=build(SamplingConfig, {"weights": weights}, "data.sampling"))
        shares = [
            collections.Counter(name for name, _ in dataset_and_index(pipe.batch_at("train", 10, step)))["seen"]
            for step in (0, 5, 9)
        ]
        assert shares == [10, 5, 1] and {name for name, _ in dataset_and_index(pipe.batch_at("train", 10, 50))} == {
            "read"
        }

    @pytest.mark.parametrize(
        "section, expected",
        [
            ({}, {"seen": 12, "read": 30, "other": 7}),
            ({"epochs": {"other": 3}}, {"seen": 12, "read": 30, "other": 21}),
            ({"temperature": 2}, {"seen": 12**0.5, "read": 30**0.5, "other": 7**0.5}),
            ({"temperature": "infinite"}, {"seen": 1, "read": 1, "other": 1}),
        ],
    )
    def test_proportions_follow_sizes_epochs_or_temperature(self, section, expected):
        pipe = pipeline(sampling=build(SamplingConfig, section, "data.sampling"))
        counts = collections.Counter(
            name for step in range(40) for name, _ in dataset_and_index(pipe.batch_at("train", 50, step))
        )
        for name, weight in expected.items():
            assert counts[name] == pytest.approx(2000 * weight / sum(expected.values()), abs=2)

    def test_classes_can_be_balanced(self):
        dataset = Words(Words.Config(size=31, classes=30))
        sampling = build(SamplingConfig, {"by": "label", "temperature": "infinite"}, "data.sampling")
        batch = pipeline_of(dataset, sampling=sampling).batch_at("train", 60, 0)
        assert sorted(collections.Counter(batch.targets["label"].values.tolist()).values()) == [2] * 30

    @pytest.mark.parametrize(
        "section, said",
        [
            ({"by": "colour"}, "data.sampling.by: the index has no column 'colour'"),
            (
                {"weights": {"sene": 1}},
                "data.sampling.weights.sene: the column 'dataset' has no value 'sene'; did",
            ),
            ({"weights": {"seen": 1}}, "data.sampling.weights.read: is missing; give it a weight"),
            ({"epochs": {"seen": 0, "read": 0, "other": 0}}, "data.sampling.epochs: all weights are 0 at some step"),
            ({"weights": {"seen": 0, "read": 0, "other": 0}}, "data.sampling.weights: all weights are 0 at some step"),
            (
                {"weights": {"seen": "x"}},
                "data.sampling: weights.seen = 'x' is not a weight or weight schedule; give a number",
            ),
            ({"weights": {"seen": [[5, 1], [5, 2]]}}, "data.sampling: weights.seen = [[5, 1], [5, 2]] is not a weight"),
            ({"weights": {"seen": 1}, "temperature": 2}, "data.sampling: temperature, weights and epochs are mutually"),
            ({"temperature": 0.5}, "data.sampling.temperature: "),
        ],
    )
    def test_a_wrong_section_is_refused_in_one_line(self, section, said):
        with pytest.raises(UserError) as error:
            pipeline(sampling=build(SamplingConfig, section, "data.sampling")).batch_at("train", 4, 0)
        assert str(error.value).startswith(said)


def pipeline_of(dataset, **options):
    return Pipeline(dataset, {name: MODALITIES[name] for name in dataset.inputs}, seed=3, **options)


class TestFilter:
    @pytest.mark.parametrize(
        "filters, kept",
        [
            ({"length": {"at_least": 3, "at_most": 5}}, {3, 4, 5}),
            ({"label": {"one_of": ["1"]}}, {1, 4, 7, 10}),
            ({"label": {"none_of": ["1", "2"]}, "length": {"at_most": 6}}, {0, 3, 6}),
            ({"length": {"one_of": [2, 9]}}, {2, 9}),
        ],
    )
    def test_filters_apply_to_training_only(self, filters, kept):
        filters = {name: build(FilterConfig, each, "data.filter") for name, each in filters.items()}
        pipe = pipeline_of(Words(Words.Config()), filters=filters)
        ids = {int(number) % 12 for step in range(6) for number in pipe.batch_at("train", 4, step).ids}
        assert ids == kept
        with pipe.evaluation_batches("test", 12) as batches:
            assert next(batches).ids.tolist() == list(range(12))

    @pytest.mark.parametrize(
        "filters, said",
        [
            ({"label": {"at_least": 3}}, "data.filter.label: at_least and at_most need a numeric column; use one_of"),
            (
                {"label": {"none_of": ["7"]}},
                "data.filter.label: the column has no value '7'; choose from '0', '1', '2'",
            ),
            ({"length": {"one_of": ["a"]}}, "data.filter.length: the column has no value 'a'; choose from"),
            ({"height": {"at_least": 3}}, "data.filter.height: the index has no column 'height'"),
            ({"length": {"at_least": 99}}, "data.filter: no record of split 'train' passes the filters"),
        ],
    )
    def test_invalid_filters_are_refused(self, filters, said):
        filters = {name: build(FilterConfig, each, "data.filter") for name, each in filters.items()}
        with pytest.raises(UserError) as error:
            pipeline_of(Words(Words.Config()), filters=filters).batch_at("train", 4, 0)
        assert str(error.value).startswith(said)


def hashes(workers: int, parts: int, start: int, count: int) -> list[str]:
    """Fingerprints of batches from `parts` shares of the rows: mixture, curriculum, filter, modality dropout."""
    DATASETS.update(DATASETS_HERE)
    weights = {"seen": [[0, 1], [30, 3]], "read": [[5, 0], [20, 1]]}
    options = {
        "sampling": build(SamplingConfig, {"weights": weights}, "data.sampling"),
        "filters": {"dataset": build(FilterConfig, {"none_of": ["other"]}, "data.filter")},
        "modality_dropout": {"picture": 0.3, "words": 0.3},
    }
    found = []
    shares = [np.arange(8)[part::parts] for part in range(parts)]
    made = [pipeline(workers=workers, **options).train_batches("train", 8, start, rows) for rows in shares]
    order = np.argsort(np.concatenate(shares))
    for _ in range(count):
        each = [next(batches) for batches in made]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[order] if leaves[0].ndim else leaves[0], *each)
        found.append(fingerprint(joined))
    for batches in made:
        batches.close()
    return found


def test_processes_workers_and_resuming_change_nothing():
    whole = hashes(workers=0, parts=1, start=0, count=60)
    assert len(set(whole)) == 60
    assert hashes(workers=0, parts=2, start=0, count=60) == hashes(workers=0, parts=4, start=0, count=60) == whole
    # Worker processes need a script of their own, like a user's.
    folder = pathlib.Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests import test_mixture as t\n"
        "if __name__ == '__main__':\n"
        "    print([t.hashes(workers, 1, 13, 30) for workers in (2, 4)])\n"
    )
    command = [sys.executable, "-c", code, str(folder.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str([whole[13:43], whole[13:43]])


RECIPE = """
from ml_collections import ConfigDict


def get_config():
    trunk = {"width": 8, "depth": 1, "heads": 2}
    config = ConfigDict()
    config.data = {
        "name": "mixture",
        "datasets": {
            "pairs": {"name": "digits", "task": "matched"},
            "noise": {"name": "synthetic", "examples": 32, "classes": 4, "rename": {"text": "words"}},
        },
        "inputs": {"image": {"size": [8, 8], "channels": 1}, "words": {"length": 8}},
        "sampling": {"temperature": "infinite"},
    }
    config.model = {
        "encoders": {
            "image": {"kind": "vit", "patch": 4, **trunk},
            "words": {"kind": "text_transformer", **trunk},
        },
        "fusion": {"kind": "concatenation", "width": 8},
    }
    config.tasks = {name: {"kind": "classification", "reads": "fused"} for name in ("digit", "label")}
    config.optimizer = {"name": "adamw"}
    config.schedule = {"kind": "constant", "peak": 1e-3}
    config.train = {"steps": 4, "batch_size": 16}
    config.mesh = {"data": -1}
    config.evaluate = {"splits": ["pairs/test", "noise/test"], "batch_size": 256}
    config.log = {"every": 2}
    return config
"""


def test_a_run_learns_each_task_from_its_own_dataset(tmp_path, monkeypatch, digits_cache):
    monkeypatch.setenv("MMJAX_CACHE", str(digits_cache))
    (tmp_path / "recipe.py").write_text(RECIPE)
    assert main(["train", f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "digit/accuracy" in result["pairs/test"] and "label/accuracy" not in result["pairs/test"]
    assert "label/accuracy" in result["noise/test"] and "digit/accuracy" not in result["noise/test"]
    assert list(result["subsets"]["pairs/test"]) == ["image"]
    assert sorted(result["subsets"]["noise/test"]) == ["image", "image+words", "words"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite([row["digit/loss"], row["label/loss"]]).all() for row in rows if row["split"] == "train")
