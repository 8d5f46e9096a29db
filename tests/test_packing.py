"""Packing: a plan places each example once, and examples that share a row do not influence each other."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import subprocess
import sys
from typing import ClassVar

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from mmjax.config import build
from mmjax.data.dataset import Record
from mmjax.data.packed_sampler import PackedSampler, first_fit_decreasing
from mmjax.data.packing import Packing, PackingConfig
from mmjax.data.pipeline import Pipeline, fingerprint
from mmjax.data.samplers import SequentialSampler
from mmjax.data.sampling import FilterConfig, SamplingConfig
from mmjax.datasets import DATASETS, make_dataset
from mmjax.datasets.mixture import PartConfig
from mmjax.errors import UserError
from mmjax.evaluation.predictor import Predictor, read_inputs
from mmjax.experiment import Experiment
from mmjax.modalities import Audio, Image, Table, Text
from mmjax.modalities.augmentation import AUGMENTATIONS
from mmjax.planning.plan import make_plan
from mmjax.planning.report import print_plan
from mmjax.tokens import Input, TargetSpec
from tests import contracts
from tests.contracts import assert_close, assert_identical

# The packing plan.


@st.composite
def plans(draw):
    """Lengths of two inputs, budgets that no record exceeds, slots, window, rows per step, and a seed."""
    seed = draw(st.integers(0, 2**31))
    draws = np.random.default_rng(seed)
    size, most = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    lengths = draws.integers(0, most + 1, (size, 2))
    budgets = np.array([draw(st.integers(most, 3 * most)) for _ in range(2)])
    return lengths, budgets, draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 5)), seed


@dataclasses.dataclass(frozen=True)
class Stream:
    """Shuffled epochs of records, by windows. Faster than Grain's shuffle where records are few."""

    size: int
    window: int
    seed: int

    def __call__(self, step, rows):
        epochs, places = np.divmod(step * self.window + rows, self.size)
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(self.size) for epoch in set(epochs)}
        return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]), epochs


def packed(plan, order=None, windows=None) -> PackedSampler:
    lengths, budgets, slots, window, rows, seed = plan
    order = order or Stream(len(lengths), window, seed)
    return PackedSampler(order, lengths, budgets, slots, window, rows, seed, windows)


QUICK = hypothesis.settings(max_examples=25, deadline=None)


@QUICK
@hypothesis.given(plans())
def test_an_epoch_holds_each_example_once_and_no_row_exceeds_budgets_or_slots(plan):
    lengths, budgets, slots, window, rows, _ = plan
    order, seen = packed(plan), collections.Counter()
    # This many steps hold two epochs and the windows in which they end, even with one example per row.
    for step in range(-(-(2 * len(lengths) + 2 * 4 * window) // rows)):
        numbers, epochs = (each.reshape(rows, slots) for each in order(step, np.arange(rows)))
        for row in numbers:
            assert (lengths[row[row >= 0]].sum(axis=0) <= budgets).all()
        seen.update(zip(numbers[numbers >= 0].tolist(), epochs[numbers >= 0].tolist(), strict=True))
    assert set(seen.values()) == {1}
    assert all((number, epoch) in seen for number in range(len(lengths)) for epoch in (0, 1))


@QUICK
@hypothesis.given(plans(), st.integers(0, 30))
def test_a_step_is_the_same_in_any_share_of_rows_and_after_resuming_there(plan, step):
    _, _, slots, _, rows, _ = plan
    order = packed(plan)
    whole = [order(k, np.arange(rows)) for k in range(step + 1)][step]
    apart = packed(plan)(step, np.arange(rows)[::-1])
    for one, other in zip(whole, apart, strict=True):
        np.testing.assert_array_equal(one.reshape(rows, slots)[::-1], other.reshape(rows, slots))
    alone = [packed(plan)(step, np.array([row]))[0] for row in range(rows)]
    np.testing.assert_array_equal(np.concatenate(alone), whole[0])
    # An earlier step again, after its plan was evicted from the cache.
    np.testing.assert_array_equal(order(0, np.arange(rows))[0], packed(plan)(0, np.arange(rows))[0])


@QUICK
@hypothesis.given(plans())
def test_a_stream_that_ends_has_each_example_once_in_all_of_its_steps(plan):
    lengths, _, _, window, rows, _ = plan
    order = packed(plan, SequentialSampler(len(lengths), window), windows=-(-len(lengths) // window))
    numbers = np.concatenate([order(step, np.arange(rows))[0] for step in range(order.steps)])
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(len(lengths)))
    assert (order(order.steps, np.arange(rows))[0] == -1).all()
    assert (order(order.steps - 1, np.arange(rows))[0] >= 0).any()


@QUICK
@hypothesis.given(plans())
def test_first_fit_matches_a_sequential_loop(plan):
    lengths, budgets, slots, _, _, _ = plan
    needs = np.concatenate([lengths, np.ones((len(lengths), 1), int)], axis=1)
    limits = np.append(budgets, slots)
    rows, expected = [], np.zeros(len(needs), int)
    for example in np.argsort(-(needs / limits).max(axis=1), kind="stable"):
        fitting = [row for row, left in enumerate(rows) if (left >= needs[example]).all()]
        if not fitting:
            rows.append(limits.copy())
            fitting = [len(rows) - 1]
        rows[fitting[0]] -= needs[example]
        expected[example] = fitting[0]
    # Also beside another window, and with the examples in reverse order.
    found = first_fit_decreasing(np.stack([needs, needs[::-1]]), limits)
    np.testing.assert_array_equal(found[0], expected)
    assert found[1].max() <= 2 * expected.max() + 1


def test_rows_of_a_window_are_in_random_order():
    lengths = np.stack([np.arange(40), np.zeros(40, int)], axis=1)
    sampler = packed((lengths, np.array([40, 1]), 1, 40, 40, 7), SequentialSampler(40, 40), windows=1)
    order, _ = sampler(0, np.arange(40))
    assert sorted(order) == list(range(40))
    # First fit decreasing alone would begin with the longest.
    assert abs(np.corrcoef(order, np.arange(40))[0, 1]) < 0.5


def test_rows_of_photographs_are_full():
    draws = np.random.default_rng(0)
    image = Image(Image.Config(patch=16, patches=128))
    measured = {"height": draws.integers(64, 640, 8192), "width": draws.integers(64, 640, 8192)}
    lengths = image.lengths(measured, 512)[:, None]
    assert len(np.unique(lengths)) > 50
    order = packed((lengths, np.array([512]), 16, 1024, 16, 0))
    found = np.concatenate([order(step, np.arange(16))[0] for step in range(30)])
    assert lengths[found[found >= 0]].sum() > 0.95 * 30 * 16 * 512


# Packed inputs of modalities.


@QUICK
@hypothesis.given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 60))
def test_a_picture_keeps_its_aspect_ratio_within_its_patches(height, width, most):
    image = Image(Image.Config(patch=8, channels=1))
    values, places = image.process_packed(np.zeros((height, width), np.uint8), most)
    measured = {"height": np.array([float(height)]), "width": np.array([float(width)])}
    assert 1 <= len(values) <= most and len(values) == image.lengths(measured, most)[0]
    rows, columns = places.max(axis=0) + 1
    assert len(np.unique(places, axis=0)) == len(values) == rows * columns
    # Enlarged by rounding at most; each side is off by less than a patch, unless the image is thinner than one.
    assert rows <= max(1, height / 8 + 0.5) and columns <= max(1, width / 8 + 0.5)
    shrink = min(1.0, (64 * most / (height * width)) ** 0.5)
    if min(height, width) * shrink >= 8:
        assert abs(rows - shrink * height / 8) <= 1.0 and abs(columns - shrink * width / 8) <= 1.0


def test_patches_are_those_of_the_picture_row_by_row():
    image = Image(Image.Config(patch=2, channels=3, mean=(0.0,), std=(1.0,)))
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    values, places = image.process_packed(picture, 99)
    assert places.tolist() == [[row, column] for row in range(2) for column in range(3)]
    for patch, (row, column) in zip(values, places.astype(int), strict=True):
        expected = picture[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(np.float32) / 255
        np.testing.assert_allclose(patch, expected.reshape(-1), rtol=1e-6)


@QUICK
@hypothesis.given(st.integers(1, 3000), st.sampled_from([4000, 8000, 11025, 44100]), st.integers(1, 40))
def test_recordings_are_chunked_within_their_planned_length(count, rate, most):
    audio = Audio(Audio.Config(sample_rate=8000, seconds=0.25, chunk=60, normalise="none"))
    samples = np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)
    length = audio.lengths({"seconds": np.array([count / rate])}, most)[0]
    chunks, places = audio.process_packed((samples, rate), most)
    values, mask = audio.process((samples, rate))
    whole = min(int(mask.sum()), 60 * most)
    assert len(chunks) == length == -(-whole // 60) <= most
    assert places.tolist() == [[index, whole] for index in range(length)]
    np.testing.assert_allclose(chunks.reshape(-1)[:whole], values[:whole], atol=1e-6)
    assert (chunks.reshape(-1)[whole:] == 0).all()


def test_truncated_texts_keep_their_end_within_the_planned_length():
    text = Text(Text.Config(length=9))
    for words in ("", "a", "éé", "longer than that"):
        length = text.lengths({"bytes": np.array([float(len(words.encode()))])}, 7)[0]
        tokens, places = text.process_packed(words, 7)
        assert len(tokens) == length <= 7 and tokens[-1] == text.end and places[:, 0].tolist() == list(range(length))


# The stream of packed batches.


class Sizes:
    """Record i is an image and a text of individual sizes; every seventh lacks the image, every ninth the text."""

    splits: ClassVar = ("train", "validation", "test")
    inputs: ClassVar = {"picture": "image", "words": "text"}
    targets: ClassVar = {"label": TargetSpec((), "int32", ("dark", "bright"))}

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Number of records; whether sizes are equal; whether the index exists."""

        size: int = 61
        equal: bool = False
        known: bool = True

    def __init__(self, config: Config):
        self.config = config

    def prepare(self):
        return pathlib.Path(".")

    def source(self, split):
        return self

    def columns(self, split):
        shapes = [self._shape(index) for index in range(len(self))]
        names = ("picture/height", "picture/width", "words/bytes")
        found = {name: np.array(column) for name, column in zip(names, zip(*shapes, strict=True), strict=True)}
        return found if self.config.known else {}

    def ceilings(self, split):
        return {}

    def _shape(self, index):
        lacks = (np.nan, np.nan) if index % 7 == 3 else None
        height, width, letters = (8, 8, 5) if self.config.equal else (4 + index % 9, 4 + index % 11, index % 6)
        return (*(lacks or (float(height), float(width))), np.nan if index % 9 == 4 else float(letters))

    def __len__(self):
        return self.config.size

    def __getitem__(self, index):
        height, width, letters = self._shape(index)
        level = 200 if index % 2 else 20
        draws = np.random.default_rng(index)
        picture = None if np.isnan(height) else draws.integers(level, level + 50, (int(height), int(width)), np.uint8)
        words = None if np.isnan(letters) else f"{index:05}"[: int(letters)]
        return Record({"picture": picture, "words": words}, {"label": index % 2})


MODALITIES = {
    "picture": Image(Image.Config(size=(8, 8), patch=4, channels=1)),
    "words": Text(Text.Config(length=6)),
}
PACKING = PackingConfig(slots=4, budgets={"picture": 14, "words": 18}, window=16)


def pipeline(dataset=None, packing=PACKING, **options) -> Pipeline:
    dataset = Sizes(Sizes.Config()) if dataset is None else dataset
    made = Packing(packing, MODALITIES) if packing else None
    return Pipeline(dataset, MODALITIES, **{"seed": 3, "packing": made, **options})


def test_a_row_holds_what_the_plan_says_and_each_example_has_one_slot_in_all_inputs():
    pipe, seen = pipeline(), []
    dataset = pipe.dataset
    for step in range(12):
        batch = pipe.batch_at("train", 32, step)
        assert batch.size == 32 and batch.rows == 8 and pipe.broken == {"train": set()}
        for slot in np.flatnonzero(batch.ids >= 0):
            number = int(batch.ids[slot]) % 61
            seen.append(int(batch.ids[slot]))
            record = dataset[number]
            assert batch.targets["label"].values[slot] == number % 2 and batch.targets["label"].weight[slot] == 1
            for name, modality in MODALITIES.items():
                x, raw = batch.inputs[name], record.inputs[name]
                row, place = divmod(int(slot), 4)
                example_mask = x.mask[row] & (x.segments[row] == place)
                assert bool(x.present[slot]) == example_mask.any() == (raw is not None)
                if raw is not None:
                    values, places = modality.process_packed(raw, 99)
                    np.testing.assert_array_equal(x.values[row][example_mask], values)
                    np.testing.assert_array_equal(x.positions[row][example_mask], places)
        empty = batch.ids < 0
        assert (batch.targets["label"].weight[empty] == 0).all()
        assert not any(x.present[empty].any() for x in batch.inputs.values())
    assert len(set(seen)) == len(seen) and set(range(61)) <= set(seen)


def test_evaluation_sees_each_example_once():
    with pipeline().evaluation_batches("test", 32) as batches:
        ids = np.concatenate([batch.ids for batch in batches])
    assert sorted(ids[ids >= 0].tolist()) == list(range(61))


def test_augmented_inputs_stay_within_their_planned_length():
    def twice(raw, draws):
        return np.repeat(np.repeat(raw, 2, axis=0), 2, axis=1)

    larger = pipeline(augment={"picture": [twice]}).batch_at("train", 32, 0)
    plain = pipeline().batch_at("train", 32, 0)
    counts = [np.asarray(x.inputs["picture"].mask).sum(axis=1) for x in (larger, plain)]
    assert (counts[0] <= counts[1]).all() and counts[0].sum() > 0.7 * counts[1].sum()


def test_a_mixture_is_packed_by_the_measures_that_all_datasets_have():
    datasets = {"one": {"name": "sizes", "rename": {"picture": "image"}}, "two": {"name": "sizes", "size": 7}}
    mixture = make_dataset({"name": "mixture", "datasets": datasets}, PartConfig)[1]
    modalities = {"image": MODALITIES["picture"], **MODALITIES}
    packing = Packing(PackingConfig(slots=4, budgets={"image": 14, **PACKING.budgets}, window=16), modalities)
    planned_lengths = packing.planned_lengths(mixture, "train", len(mixture.source("train")))
    assert (planned_lengths["image"][:61] > 0).sum() == 52 and (planned_lengths["image"][61:] == 0).all()
    assert (planned_lengths["picture"][:61] == 0).all() and (planned_lengths["words"] > 0).sum() == 54 + 6
    weights = {"weights": {"one": 1.0, "two": 3.0}}
    sampling = build(SamplingConfig, weights, "data.sampling")
    pipe = Pipeline(mixture, modalities, seed=3, packing=packing, sampling=sampling)
    ids = np.concatenate([pipe.batch_at("train", 32, step).ids for step in range(20)])
    of_two = (ids[ids >= 0] % 68 >= 61).mean()
    assert pipe.broken == {"train": set()} and 0.7 < of_two < 0.8
    datasets["two"]["known"] = False
    mixture = make_dataset({"name": "mixture", "datasets": datasets}, PartConfig)[1]
    with pytest.raises(UserError, match="data.packing: the index of split 'train' has no column 'picture/height'"):
        packing.planned_lengths(mixture, "train", len(mixture.source("train")))
    curriculum = build(SamplingConfig, {"weights": {"one": [[0, 1], [9, 0]], "two": 1.0}}, "data.sampling")
    with pytest.raises(UserError, match="data.sampling.weights: packing does not support weight schedules"):
        Pipeline(mixture, modalities, seed=3, packing=packing, sampling=curriculum).batch_at("train", 32, 0)


def hashes(workers: int, parts: int, start: int, count: int) -> list[str]:
    """Fingerprints of packed batches from `parts` shares of the rows: filter, augmentation, modality dropout."""
    found, shares = [], [np.arange(8)[part::parts] for part in range(parts)]
    options = {
        "workers": workers,
        "modality_dropout": {"picture": 0.3, "words": 0.3},
        "augment": {"picture": [AUGMENTATIONS["image"]["flip"](AUGMENTATIONS["image"]["flip"].Config())]},
        "filters": {"words/bytes": FilterConfig(at_most=4.0)},
    }
    made = [pipeline(**options).train_batches("train", 32, start, rows) for rows in shares]
    order = np.argsort(np.concatenate(shares))

    def join(*leaves):
        if not leaves[0].ndim:
            return leaves[0]
        rows = [leaf.reshape(len(share), -1, *leaf.shape[1:]) for leaf, share in zip(leaves, shares, strict=True)]
        return np.concatenate(rows)[order].reshape(-1, *leaves[0].shape[1:])

    for _ in range(count):
        found.append(fingerprint(jax.tree.map(join, *[next(batches) for batches in made])))
    for batches in made:
        batches.close()
    return found


def test_processes_workers_and_resuming_change_nothing():
    whole = hashes(workers=0, parts=1, start=0, count=40)
    assert len(set(whole)) == 40
    assert hashes(workers=0, parts=2, start=0, count=40) == hashes(workers=0, parts=4, start=0, count=40) == whole
    assert hashes(workers=0, parts=2, start=31, count=9) == whole[31:]
    folder = pathlib.Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests import test_packing as t\n"
        "if __name__ == '__main__':\n"
        "    print(t.hashes(2, 1, 13, 20))\n"
    )
    command = [sys.executable, "-c", code, str(folder.parent)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(whole[13:33])


# The model.

FUSION = contracts.Part("fusion", "cross_attention")
PAIRS = contracts.Part("task", "contrastive")
SOUND = contracts.Part("encoder", "spectrogram_transformer")
ROWS, SLOTS = 4, 3


@functools.cache
def model(part: contracts.Part):
    """A small model of packed inputs, its batch, and jitted functions of its features and losses per example."""
    case = contracts.Case(part, packed=True)
    batch, _ = contracts.make_packed_batches(case.specs, ROWS, SLOTS)

    def measure(batch):
        features = case.objective.features(case.parameters, batch)
        task = case.objective.model(case.parameters).tasks["task"]
        return features, task.losses(features["task"], batch.zero_absent())

    def input_grads(values, others):
        """Weighted sum of features and losses per example, as a function of the first input's values."""
        first = dataclasses.replace(batch.inputs["first"], values=values)
        features, losses = measure(dataclasses.replace(batch, inputs={**batch.inputs, "first": first}))
        made = [leaf.reshape(len(others), -1) for leaf in jax.tree.leaves((features, losses))]
        return sum((jnp.sin(leaf) * others[:, None]).sum() for leaf in made)

    return case, batch, jax.jit(measure), jax.jit(jax.grad(input_grads))


def example_mask(x: Input, example: int) -> np.ndarray:
    """Bool [R, N] mask of an example's elements."""
    row, slot = divmod(example, SLOTS)
    found = np.zeros(x.mask.shape, bool)
    found[row] = np.asarray(x.mask[row]) & (x.segments[row] == slot)
    return found


@pytest.mark.parametrize("part", [FUSION, PAIRS, SOUND], ids=str)
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(data=st.data())
def test_changing_a_packed_example_changes_no_other(part, data):
    _, batch, measure, _ = model(part)
    valid = np.flatnonzero(batch.ids >= 0)
    example = int(data.draw(st.sampled_from(valid.tolist())))
    draws = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = {}
    for name, x in batch.inputs.items():
        own = example_mask(x, example)
        spread = own.reshape(own.shape + (1,) * (x.values.ndim - 2))
        gone = ~x.mask.reshape(spread.shape)
        if x.values.dtype.kind == "f":
            values = np.where(spread, 10 * draws.normal(size=x.values.shape), x.values)
            values = np.where(gone, np.nan, values).astype(x.values.dtype)
        else:
            values = np.where(spread, draws.integers(0, 17, x.values.shape), x.values).astype(x.values.dtype)
        inputs[name] = dataclasses.replace(x, values=values, positions=np.where(own[..., None], 7.0, x.positions))
    label = batch.targets["label"]
    other = np.where(np.arange(batch.size) == example, (label.values + 1) % 5, label.values).astype(np.int32)
    targets = {**batch.targets, "label": dataclasses.replace(label, values=other)}
    before = measure(batch)
    after = measure(dataclasses.replace(batch, inputs=inputs, targets=targets))
    rest = np.delete(np.arange(batch.size), example)
    assert_identical(*(jax.tree.map(lambda leaf: np.asarray(leaf)[rest], found) for found in (after, before)))
    if any(example_mask(x, example).any() for x in batch.inputs.values()):
        changed = [
            np.any(a[example] != b[example]) for a, b in zip(*map(jax.tree.leaves, (after, before)), strict=True)
        ]
        assert any(changed)


@pytest.mark.parametrize("part", [FUSION, PAIRS, SOUND], ids=str)
def test_no_gradient_reaches_another_example(part):
    _, batch, _, input_grads = model(part)
    first = batch.inputs["first"]
    for example in np.flatnonzero(batch.ids >= 0)[:6]:
        own = example_mask(first, example)
        others = np.ones(batch.size, np.float32)
        others[example] = 0
        found = np.asarray(input_grads(first.values, others))
        assert (found[own] == 0).all()
        assert np.abs(np.asarray(input_grads(first.values, 1 - others))[own]).sum() > 0 or not own.any()
        # The gradient of the other examples' own elements is not 0.
        assert np.abs(found).sum() > 0


def recipe(slots: int, equal: bool = False):
    """Recipe with images and texts, packed into `slots`; `equal` makes all sizes equal."""
    trunk = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.1, "drop_path": 0.1}
    return {
        "data": {
            "name": "sizes",
            "equal": equal,
            "inputs": {
                "picture": {"size": [8, 8], "patch": 4, "channels": 1},
                "words": {"length": 6},
            },
            "packing": {"slots": slots, "budgets": {"picture": 14, "words": 18}, "window": 16},
        },
        "model": {
            "encoders": {
                "picture": {"kind": "vit", "patch": 4, **trunk},
                "words": {"kind": "text_transformer", **trunk},
            },
            "fusion": {"kind": "cross_attention", "width": 16, "depth": 1, "heads": 2, "queries": 2},
        },
        "tasks": {
            "label": {"kind": "classification", "reads": "fused"},
            "attended": {
                "kind": "classification", "target": "label", "reads": "encoders.picture", "pooling": "attention",
            },
            "pair": {"kind": "contrastive", "pair": ["encoders.picture", "encoders.words"], "width": 8},
        },
        "optimizer": {"name": "adamw"},
        "schedule": {"kind": "constant", "peak": 3e-3},
        "train": {"steps": 30, "batch_size": 32},
        "mesh": {"data": -1},
        "evaluate": {"splits": ["test"]},
    }  # fmt: skip


def experiment(slots: int, equal: bool = False, devices=None) -> Experiment:
    return Experiment(recipe(slots, equal), devices or jax.devices()[:1])


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setitem(DATASETS, "sizes", Sizes)


@functools.cache
def pair_of_experiments():
    """A packed and an unpacked experiment on images and texts of equal sizes, with shared parameters."""
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("highest"):
        patch.setitem(DATASETS, "sizes", Sizes)
        one, other = experiment(4, equal=True), experiment(1, equal=True)
        return one, other, contracts.moved(jax.device_get(one.init_state().parameters))


def test_packed_examples_get_the_answers_of_the_model_that_is_not_packed():
    one, other, parameters = pair_of_experiments()
    batch = one.pipeline.batch_at("train", 32, 2)
    valid = np.flatnonzero(batch.ids >= 0)
    assert len(valid) > 16
    # The same examples unpacked, images [height, width, channels], with the same dropout.
    alone = abstract(other, len(valid))
    for place, slot in enumerate(valid):
        record = Sizes(Sizes.Config(equal=True))[int(batch.ids[slot]) % 61]
        for name, modality in other.modalities.items():
            if record.inputs[name] is not None:
                values, mask = modality.process(record.inputs[name])
                alone.inputs[name].values[place], alone.inputs[name].mask[place] = values, mask
    alone = dataclasses.replace(alone, ids=batch.ids[valid], step=batch.step)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(one.objective.features)(parameters, batch)
        truth = jax.jit(other.objective.features)(parameters, alone)
    assert_close(jax.tree.map(lambda leaf: np.asarray(leaf)[valid], found), truth)


def abstract(made, size):
    from mmjax.tokens import abstract_batch

    return jax.tree.map(
        lambda shape: np.zeros(shape.shape, shape.dtype), abstract_batch(made.specs, made.targets, size)
    )


def test_metrics_of_a_split_and_answers_for_one_example_are_those_of_the_model_that_is_not_packed(tmp_path):
    import PIL.Image

    one, other, parameters = pair_of_experiments()
    with jax.default_matmul_precision("highest"):
        rows = [made.evaluator.run(parameters, "test") for made in (one, other)]
    shared = [name for name in rows[0] if name.startswith(("label/", "attended/"))]
    assert len(shared) >= 10
    for name in shared:
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-5), name
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "a.png")
    given = {"picture": str(tmp_path / "a.png")}
    answers = []
    for made in (one, other):
        inputs = read_inputs(made.modalities, given, made.packing)
        with jax.default_matmul_precision("highest"):
            answers.append(Predictor(made.objective, made.mesh, made.targets).run(parameters, inputs))
    assert set(answers[0]) == {"label", "attended"}
    for name in answers[0]:
        probabilities = [answer[name]["probability"] for answer in answers]
        assert answers[0][name]["answer"] == answers[1][name]["answer"]
        assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-4)


def test_eight_devices_give_what_one_gives_and_the_loss_falls():
    with jax.default_matmul_precision("highest"):
        one, eight = experiment(4), experiment(4, devices=jax.devices())
        state = one.init_state()
        batch = next(iter(one.train_batches(0)))
        truth = one.trainer.gradients_and_metrics(state.parameters, batch)
        parameters = jax.device_put(jax.device_get(state.parameters), eight.shardings.parameters)
        with jax.set_mesh(eight.mesh):
            found = eight.trainer.gradients_and_metrics(parameters, next(iter(eight.train_batches(0))))
    assert_close(found, truth)
    step, losses = one.compile_step(), []
    batches = one.train_batches(0)
    for number in range(30):
        state = step(state, next(batches))
        if (number + 1) % 10 == 0:
            losses.append(float(jax.device_get(state.window["label/loss"]).compute()))
    assert losses[-1] < 0.8 * losses[0]


def test_the_parameters_are_those_of_the_model_that_is_not_packed():
    one, other, _ = pair_of_experiments()
    assert jax.tree.map(lambda x: x.shape, one.shapes.parameters) == jax.tree.map(
        lambda x: x.shape, other.shapes.parameters
    )


def test_a_plan_counts_examples_and_not_the_slots_that_stay_empty(capsys):
    packed, alone = experiment(4), experiment(1)
    plan, _ = make_plan("packed", "this machine", packed)
    assert 0.4 < plan.examples_per_row < 0.9 and plan.examples_per_row * 32 == packed.examples_per_step
    assert dataclasses.replace(plan, step_seconds=2.0).examples_per_second == packed.examples_per_step / 2
    print_plan(Console(width=200), plan, None, None)
    assert f"32 slots with {packed.examples_per_step:,.1f} examples on average" in capsys.readouterr().out
    assert alone.examples_per_step == 32
    # Pairs count examples, not slots.
    assert alone.chance_losses["pair"] == pytest.approx(np.log(32))
    assert packed.chance_losses["pair"] == pytest.approx(np.log(round(packed.examples_per_step)))


# Data that cannot be packed.


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data": {"packing": {"slots": 4, "budgets": {"picture": 14}}}}, "data.packing.budgets.words: is missing"),
        (
            {"data": {"packing": {"slots": 4, "budgets": {"pitcure": 14}}}},
            "data.packing.budgets.pitcure: the model has no input 'pitcure'; did you mean 'picture'?",
        ),
        ({"data": {"inputs": {"picture": {"channels": 1}}}}, "data.inputs.picture: packing images needs patch"),
        (
            {"model": {"encoders": {"picture": {"kind": "vit", "patch": 2}}}},
            "model.encoders.picture: patch 2 does not match",
        ),
        (
            {"model": {"encoders": {"picture": {"kind": "vit", "patch": 4, "stride": 2}}}},
            "model.encoders.picture: patches of packed images cannot overlap",
        ),
        (
            {"model": {"encoders": {"picture": {"kind": "resnet"}}}},
            "model.encoders.picture.kind: 'resnet' does not read packed [14, 16] float32; choose 'vit'",
        ),
        ({"train": {"batch_size": 30}}, "train.batch_size: 30 is not a multiple of data.packing.slots = 4"),
        ({"train": {"accumulate": 3}}, "train.accumulate: 3 microbatches on 1 batch shards do not divide 32"),
        (
            {"train": {"loss_transforms": [{"kind": "mixup"}], "drop": ["pair"]}},
            "train.loss_transforms: mixing does not support packed inputs",
        ),
    ],
)
def test_unsupported_packing_is_refused_in_one_line(change, said):
    wrong = recipe(4)
    for section, options in change.items():
        for key, value in options.items():
            if key == "drop":
                for task in value:
                    del wrong["tasks"][task]
            elif isinstance(value, dict):
                for name, inner in value.items():
                    trunk = (
                        {"width": 16, "depth": 1, "heads": 2} if isinstance(inner, dict) and "patch" in inner else {}
                    )
                    wrong[section][key][name] = {**trunk, **inner} if isinstance(inner, dict) else inner
            else:
                wrong[section][key] = value
    with pytest.raises(UserError) as error:
        Experiment(wrong, jax.devices()[:1])
    assert str(error.value).startswith(said)


def test_a_dataset_without_an_index_and_an_input_that_has_no_elements_are_refused():
    with pytest.raises(UserError, match="data.packing: the index of split 'train' has no column 'picture/height'"):
        pipeline(Sizes(Sizes.Config(known=False))).batch_at("train", 32, 0)
    with pytest.raises(UserError, match="data.packing: input 'row' of kind 'table' does not support packing"):
        Packing(PackingConfig(slots=2, budgets={"row": 9}), {"row": Table(Table.Config(columns=("a",)))})
    with pytest.raises(UserError, match="data.inputs.sound: packing audio needs chunk, which is not set"):
        Packing(PackingConfig(slots=2, budgets={"sound": 9}), {"sound": Audio(Audio.Config())})
