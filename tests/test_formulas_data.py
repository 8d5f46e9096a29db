"""Batches, sampling and statistics against their formulas; draws that change with the step, row and seed."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

from mmjax.data.dataset import Dataset, Record, sample_dropped
from mmjax.data.pipeline import Pipeline
from mmjax.data.sampling import FilterConfig, SamplingConfig, make_sampler
from mmjax.modalities import MODALITIES
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.prepare.splits import assign_parts
from mmjax.prepare.statistics import describe
from mmjax.tokens import TargetSpec

SIZE = 64


class OneRecord(Dataset):
    """Source of one repeated record, a grey image and a tone, so that any difference between rows is a random draw."""

    splits = ("train", "validation")
    inputs = {"image": "image", "audio": "audio"}
    targets = {"label": TargetSpec((), "int32", ("a", "b"))}

    def __init__(self):
        pass

    def prepare(self):
        raise NotImplementedError

    def ceilings(self, split):
        return {}

    def source(self, split):
        tone = np.round(9000 * np.sin(np.arange(400) / 5)).astype(np.int16)
        image = np.arange(64, dtype=np.uint8).reshape(8, 8)
        return [Record({"image": image, "audio": (tone, 8000)}, {"label": 1})] * 3


def component(table, kind, **options):
    cls = table[kind]
    return cls(cls.Config(**options))


def pipeline(seed: int = 0, **options) -> Pipeline:
    modalities = {
        "image": component(MODALITIES, "image", size=(8, 8), channels=1),
        "audio": component(MODALITIES, "audio", sample_rate=8000, seconds=0.05),
    }
    return Pipeline(OneRecord(), modalities, seed=seed, **options)


def drawn(step: int, row: int, seed: int = 0, count: int = 1) -> np.ndarray:
    noise = [component(AUGMENTATIONS["audio"], "noise")] * count
    batch = pipeline(seed, augment={"audio": noise}).batch_at("train", 4, step)
    return batch.inputs["audio"].values[row].copy()


def test_augmentation_draws_anew_for_each_step_row_and_seed():
    found = {key: drawn(*key).tobytes() for key in itertools.product((0, 1, 7), (0, 1), (0, 1))}
    assert len(set(found.values())) == len(found)
    assert drawn(1, 0).tobytes() == found[1, 0, 0], "the draw depends on more than step, row and seed"
    plain = pipeline().batch_at("train", 4, 0).inputs["audio"].values[0]
    once, twice = drawn(0, 0) - plain, drawn(0, 0, count=2) - plain
    assert abs(np.corrcoef(once.ravel(), (twice - once).ravel())[0, 1]) < 0.3, "two augmentations of a kind share draws"


def presence(step: int, rates: dict[str, float], seed: int = 0) -> np.ndarray:
    inputs = pipeline(seed, modality_dropout=rates).batch_at("train", SIZE, step).inputs
    return np.stack([inputs[name].mask.reshape(SIZE, -1).any(1) for name in ("image", "audio")])


def test_modality_dropout_draws_anew_for_each_step_row_and_seed_at_its_rate():
    rates = {"image": 0.4, "audio": 0.2}
    found = {(step, seed): presence(step, rates, seed) for step in range(6) for seed in (0, 1)}
    for one, other in itertools.combinations(found, 2):
        assert (found[one] != found[other]).any(axis=1).all(), f"{one} and {other} drop the same inputs"
    np.testing.assert_array_equal(presence(3, rates), found[3, 0])
    stacked = np.concatenate(list(found.values()), axis=1)
    assert stacked.any(axis=0).all(), "an example lost all of its inputs"
    # Both are dropped with probability 0.08; then one of them, drawn evenly, is kept.
    expected = np.array([0.4 - 0.04, 0.2 - 0.04])
    spread = 4 * (expected * (1 - expected) / stacked.shape[1]) ** 0.5
    assert (abs(1 - stacked.mean(axis=1) - expected) < spread).all()


def test_evaluation_neither_augments_nor_drops():
    noise = {"audio": [component(AUGMENTATIONS["audio"], "noise")]}
    busy = pipeline(augment=noise, modality_dropout={"image": 0.9})
    with busy.evaluation_batches("validation", 2) as batches, pipeline().evaluation_batches("validation", 2) as plain:
        for mine, truth in zip(batches, plain, strict=True):
            for name in ("image", "audio"):
                np.testing.assert_array_equal(mine.inputs[name].values, truth.inputs[name].values)


def test_targets_and_ids_of_a_batch_are_those_of_its_records():
    batch = pipeline().batch_at("train", 7, 2)
    np.testing.assert_array_equal(batch.targets["label"].values, 1)
    np.testing.assert_array_equal(batch.targets["label"].weight, 1.0)
    assert len(set(batch.ids.tolist())) == 7 and int(batch.step) == 2
    # Steps 0 to 2 hold records 0 to 20 of the stream: seven epochs of three records.
    ids = np.concatenate([pipeline().batch_at("train", 7, step).ids for step in range(3)])
    assert collections.Counter(ids % 3) == {0: 7, 1: 7, 2: 7} and sorted(ids // 3) == sorted([*range(7)] * 3)


def test_a_dropped_input_is_one_that_is_there():
    rng = np.random.default_rng(0)
    kept = collections.Counter()
    for _ in range(2000):
        dropped = sample_dropped({"a": 0.999, "b": 0.999, "c": 0.999}, ["a", "b"], rng)
        assert len(dropped) == 1 and dropped < {"a", "b"}
        kept[next(iter({"a", "b"} - dropped))] += 1
    assert abs(kept["a"] - 1000) < 4 * 500**0.5


class Grouped(OneRecord):
    def columns(self, split):
        return {"label": np.array(["x"] * 100 + ["y"] * 25), "length": np.arange(125.0)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, 100 / 125),
        ({"temperature": 2.0}, 10 / 15),
        ({"temperature": "infinite"}, 1 / 2),
        ({"weights": {"x": 1.0, "y": 3.0}}, 1 / 4),
        ({"epochs": {"y": 4.0}}, 1 / 2),
        ({"weights": {"x": [[0, 0.0], [100, 4.0]], "y": 1.0}}, 1 - np.mean(1 / (1 + 0.04 * np.arange(100)))),
    ],
    ids=str,
)
def test_groups_are_sampled_in_their_shares(options, expected):
    sampler = make_sampler(Grouped(), "train", 125, 10, 0, SamplingConfig(by="label", **options))
    found = np.concatenate([sampler(step, np.arange(10))[0] for step in range(100)])
    assert abs((found < 100).mean() - expected) < 0.002


def test_filters_keep_what_satisfies_all_conditions():
    filters = {"length": FilterConfig(at_least=10, at_most=110), "label": FilterConfig(none_of=("y",))}
    sampler = make_sampler(Grouped(), "train", 125, 90, 0, None, filters)
    assert sorted(sampler(0, np.arange(90))[0]) == list(range(10, 100))[:90]


def test_bounds_of_a_filter_are_inclusive_and_missing_values_fail_them():
    values = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    for options, kept in (
        ({"at_least": 2.0, "at_most": 3.0}, [0, 1, 1, 0, 0]),
        ({"at_least": 3.0}, [0, 0, 1, 1, 0]),
        ({"at_most": 3.0}, [1, 1, 1, 0, 0]),
        ({"one_of": (1.0, 4.0)}, [1, 0, 0, 1, 0]),
        ({"none_of": (1.0, 4.0)}, [0, 1, 1, 0, 1]),
    ):
        assert FilterConfig(**options).keep_mask(values).tolist() == list(map(bool, kept)), options


def test_statistics_are_those_of_numpy_without_missing_values():
    values = np.array([4.0, np.nan, 1.0, 7.0, 1.0])
    found = describe(values)
    assert found == {"mean": 3.25, "variance": 6.1875, "smallest": 1.0, "median": 2.5, "largest": 7.0}
    assert describe(np.array([np.nan])) == {}


def test_splits_have_their_shares_of_rows_and_labels_and_keep_groups_whole():
    draws = np.random.default_rng(0)
    groups = draws.integers(0, 300, 1200)
    labels = np.where(groups % 3 == 0, "a", "b")
    parts = assign_parts({"train": 8, "validation": 1, "test": 1}, groups, labels, "seed")
    for group in range(300):
        assert len(set(parts[groups == group])) <= 1
    for mask in (labels == "a", labels == "b"):
        shares = np.bincount(parts[mask], minlength=3) / mask.sum()
        np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    assert (assign_parts({"train": 8, "validation": 1, "test": 1}, groups, labels, "other") != parts).any()
