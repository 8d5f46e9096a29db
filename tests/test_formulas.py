"""Formulas against scikit-learn, closed forms and NumPy in float64."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from flax import nnx
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from mmjax.data.batching import BatchFunction
from mmjax.data.dataset import Record
from mmjax.data.pipeline import Pipeline
from mmjax.data.rows import PaddedRows
from mmjax.errors import UserError
from mmjax.evaluation import Evaluator
from mmjax.layers import Randomness, Stack, drop_path, dropout, sincos_positions
from mmjax.model import Model
from mmjax.sharding import MeshConfig, make_mesh, parameter
from mmjax.tasks.classification import Classification
from mmjax.tasks.contrastive import Contrastive, clip_above
from mmjax.tasks.metrics import ClassCounts, Ratio, finalise
from mmjax.tokens import Batch, Input, InputSpec, Target, TargetSpec
from mmjax.training.loss_transforms import LOSS_TRANSFORMS
from mmjax.training.loss_transforms.mixing import CutMix
from mmjax.training.objective import Objective

CLASSES = ("a", "b", "c", "d", "e", "f")


def rng(size: int = 1000, step: int = 0, seed: int = 0) -> Randomness:
    return Randomness.make(seed, jnp.int32(step), jnp.arange(size))


# Metrics.


@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy_precision_recall_and_f1_are_those_of_scikit_learn(weighted):
    draws = np.random.default_rng(0)
    labels, predictions = draws.integers(0, 4, 200), draws.integers(0, 4, 200)
    # Class 0 is labelled but never predicted, 4 predicted but never labelled, 5 neither.
    predictions[predictions == 0] = 4
    weights = draws.integers(0, 3, 200) if weighted else np.ones(200, int)
    found = ClassCounts.of(jnp.asarray(predictions), jnp.asarray(labels), jnp.asarray(weights, jnp.float32), 6)
    options = {"average": "macro", "zero_division": 0, "sample_weight": weights, "labels": [0, 1, 2, 3, 4]}
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predictions, **options)
    expected = {"precision": precision, "recall": recall, "f1": f1}
    assert found.compute_values() == pytest.approx(expected, rel=1e-6)
    hits = Ratio.of(jnp.asarray(labels == predictions, jnp.float32), jnp.asarray(weights, jnp.float32))
    assert hits.compute() == pytest.approx(accuracy_score(labels, predictions, sample_weight=weights), rel=1e-6)


def classification(**options) -> Classification:
    config = Classification.Config(reads="x", target="y", **options)
    return Classification(config, "y", {"x": 4}, {"y": TargetSpec((), "int32", CLASSES)}, rngs=nnx.Rngs(params=0))


def labelled(labels) -> Batch:
    size = len(labels)
    inputs = {"x": Input(jnp.ones((size, 1)), jnp.ones(size, bool))}
    target = Target(jnp.asarray(labels, jnp.int32), jnp.ones(size))
    return Batch(inputs, {"y": target}, jnp.arange(size), jnp.int32(0))


def test_label_smoothing_spreads_over_all_classes_and_only_in_training():
    draws = np.random.default_rng(0)
    logits, labels = draws.normal(size=(10, 6)), draws.integers(0, 6, 10)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    # (1 - e) * one_hot + e / K, with all K classes.
    smooth = 0.9 * np.eye(6)[labels] + 0.1 / 6
    task, batch = classification(label_smoothing=0.1), labelled(labels)
    features = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(task.losses(features, batch), -(smooth * log_p).sum(1), rtol=1e-5)
    np.testing.assert_allclose(task.eval_losses(features, batch), -log_p[np.arange(10), labels], rtol=1e-5)


def test_logits_that_are_not_finite_predict_no_class():
    logits = jnp.asarray([[2.0, 0, 0, 0, 0, 0], [np.nan] * 6, [np.inf, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]])
    row = finalise(classification().metrics(logits, labelled([0, 0, 0, 1])))
    assert row["accuracy"] == 0.5
    # Class 0: precision 1/1, recall 1/3. Class 1: both 1.
    assert row["/precision"] == pytest.approx(1.0) and row["/recall"] == pytest.approx((1 / 3 + 1) / 2)


def contrastive(**options) -> Contrastive:
    config = Contrastive.Config(pair=("p", "q"), width=4, **options)
    return Contrastive(config, "c", {"p": 4, "q": 4}, {}, rngs=nnx.Rngs(params=0))


def test_embeddings_that_are_not_finite_find_no_partner():
    same = jnp.eye(4)
    inputs = {name: Input(jnp.ones((4, 1)), jnp.ones(4, bool)) for name in "pq"}
    batch = Batch(inputs, {}, jnp.arange(4), jnp.int32(0))
    task = contrastive(recall_at=(1, 4))
    assert finalise(task.metrics((same, same), batch))["recall@1"] == 1.0
    assert finalise(task.metrics((same.at[1].set(jnp.nan), same), batch))["recall@1"] == 0.75
    # Recall at 4 of 4 examples is 1 for every finite embedding.
    assert finalise(task.metrics((same, same[::-1]), batch))["recall@4"] == 1.0
    row = finalise(task.metrics((same * jnp.nan, same * jnp.nan), batch))
    assert row["recall@1"] == row["recall@4"] == 0.0


# Temperature.


def test_the_softmax_temperature_is_bounded_and_can_decrease_again():
    task = contrastive()
    task.log_temperature[...] = jnp.log(jnp.array([250.0]))
    assert float(task._temperature()) == pytest.approx(100.0, rel=1e-5)
    assert float(contrastive(max_temperature=20.0)._temperature()) == pytest.approx(1 / 0.07, rel=1e-5)
    sigmoid = contrastive(loss="sigmoid")
    sigmoid.log_temperature[...] = jnp.log(jnp.array([250.0]))
    assert float(sigmoid._temperature()) == pytest.approx(250.0, rel=1e-5)
    # Gradient descent on -x and on +x, from above the bound: only the latter moves.
    slope = jax.grad(lambda x, sign: sign * clip_above(x, jnp.float32(1.0)))
    assert [float(slope(2.0, sign)) for sign in (-1.0, 1.0)] == [0.0, 1.0]
    assert [float(slope(0.5, sign)) for sign in (-1.0, 1.0)] == [-1.0, 1.0]
    with pytest.raises(ValueError, match="temperature 150 is above max_temperature 100; lower it"):
        Contrastive.Config(pair=("p", "q"), temperature=150.0)


# Losses by chance.


def test_losses_by_chance_are_those_of_the_best_constant():
    size = 12
    # One positive pair and 11 negative ones for each example.
    loss = scipy.optimize.minimize_scalar(lambda logit: np.log1p(np.exp(-logit)) + (size - 1) * np.log1p(np.exp(logit)))
    assert contrastive(loss="sigmoid").chance_loss(size) == pytest.approx(loss.fun, rel=1e-6)
    assert contrastive(loss="sigmoid").chance_loss(1) == 0.0
    assert contrastive().chance_loss(size) == pytest.approx(np.log(size))
    assert classification().chance_loss(size) == pytest.approx(np.log(6))


def test_predictions_are_the_five_most_probable_classes():
    logits = np.log([0.05, 0.3, 0.1, 0.35, 0.15, 0.05])
    (found,) = classification().predictions(jnp.asarray(logits[None], jnp.float32))
    assert (found["answer"], found["probability"]) == ("d", pytest.approx(0.35, rel=1e-5))
    assert [each["answer"] for each in found["top"]] == ["d", "b", "e", "c", "a"]
    assert [each["probability"] for each in found["top"]] == pytest.approx([0.35, 0.3, 0.15, 0.1, 0.05], rel=1e-5)


# Dropout and stochastic depth.


def test_dropout_keeps_the_mean_and_drops_its_rate():
    dropped = np.asarray(dropout(jnp.ones((200, 500)), 0.3, rng(200)))
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(dropped[dropped > 0], 1 / 0.7, rtol=1e-6)


class Recorder(nnx.Module):
    """Writes the branch of layer i to column i of the carry."""

    def __init__(self):
        self.unused = parameter(jnp.zeros(1), "none")

    def __call__(self, carry, layer_rng, drop_rate):
        index, columns = carry
        ones = jnp.ones(columns.shape[0])
        branch = drop_path(dropout(ones, 0.0, layer_rng), drop_rate, layer_rng.fold_in("path"))
        return index + 1, columns.at[:, index].set(branch)


def test_stochastic_depth_grows_with_depth_is_rescaled_and_differs_between_layers():
    stack = Stack(lambda rngs: Recorder(), 4, rngs=nnx.Rngs(params=0), drop_path=0.6)
    _, columns = stack((jnp.int32(0), jnp.zeros((4000, 4))), rng=rng(4000))
    columns, rates = np.asarray(columns), np.array([0.0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose((columns == 0).mean(0), rates, atol=0.03)
    np.testing.assert_allclose(columns.max(0), 1 / (1 - rates), rtol=1e-5)
    np.testing.assert_allclose(columns.mean(0), 1.0, atol=0.07)
    # Draws of two layers are independent: both drop with the product of their rates.
    assert ((columns[:, 2] == 0) & (columns[:, 3] == 0)).mean() == pytest.approx(0.24, abs=0.03)


def test_an_encoder_of_any_name_has_draws_of_its_own():
    seeds = {}

    def record(name):
        def call(x, key):
            seeds[name] = np.asarray(key.seeds)
            return {} if name == "the fusion" else x

        return call

    names = ("fusion", "mixing", "image", "encoders", "the fusion")
    model = types.SimpleNamespace(encoders={name: record(name) for name in names[:-1]}, fusion=record(names[-1]))
    batch = Batch(dict.fromkeys(names), {}, jnp.arange(5), jnp.int32(0))
    Model.outputs(model, batch, rng(5))
    seeds["mixing itself"] = np.asarray(rng(5).fold_in("mixing").seeds)
    assert len({each.tobytes() for each in seeds.values()}) == 6


def test_positions_are_the_sines_and_cosines_of_the_paper():
    positions = np.random.default_rng(0).uniform(0, 50, (2, 3, 2))
    found = np.asarray(sincos_positions(jnp.asarray(positions, jnp.float32), 10))
    expected = np.zeros((2, 3, 10))
    for axis in range(2):
        for pair in range(2):
            angle = positions[..., axis] / 10_000 ** (pair / 2)
            expected[..., 4 * axis + pair], expected[..., 4 * axis + 2 + pair] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Losses of a batch and of a whole split.


class Constant:
    """Task whose losses are its features."""

    def __init__(self, name: str, reads: str = "fused"):
        self.name, self.config = name, types.SimpleNamespace(reads=reads)

    def weights(self, batch):
        return batch.targets[self.name].weight

    def losses(self, features, batch):
        return features

    eval_losses = losses

    def metrics(self, features, batch):
        return {}


class Plain(Objective):
    """Objective without a network: features are sums over the inputs that a task reads."""

    reads: dict = {"a": "encoders.x", "b": "encoders.x"}

    def model(self, parameters):
        return types.SimpleNamespace(tasks={name: Constant(name, self.reads[name]) for name in self.task_weights})

    def features(self, parameters, batch, train=True):
        x = batch.inputs["x"].values
        return {name: (i + 1) * (x**2).sum(axis=tuple(range(1, x.ndim))) for i, name in enumerate(self.task_weights)}


def split_of(size: int, batch_size: int, weights: dict[str, np.ndarray], x: np.ndarray):
    for step, start in enumerate(range(0, size, batch_size)):
        rows = np.arange(start, start + batch_size)
        valid, rows = rows < size, np.minimum(rows, size - 1)
        yield Batch(
            {"x": Input(x[rows], valid)},
            {name: Target(np.zeros_like(rows, np.float32), np.float32(w[rows] * valid)) for name, w in weights.items()},
            np.where(valid, rows, -1).astype(np.int32),
            np.int32(step),
        )  # fmt: skip


@pytest.mark.parametrize("batch_size", [16, 9, 5, 1])
def test_the_loss_of_a_split_is_the_weighted_sum_of_task_means_at_the_step_of_training(batch_size):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(16, 3)).astype(np.float32)
    weights = {"a": draws.integers(0, 3, 16), "b": (np.arange(16) > 11).astype(int)}
    schedules = {"a": optax.constant_schedule(0.5), "b": optax.linear_schedule(0.0, 1.0, 100)}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    evaluator = Evaluator(Plain(None, schedules, 0), mesh, lambda split: split_of(16, batch_size, weights, x))
    losses = (x.astype(np.float64) ** 2).sum(1)
    means = [np.average(losses, weights=weights["a"]), np.average(2 * losses, weights=weights["b"])]
    row = evaluator.run({}, "validation", step=30)
    assert row["a/loss"] == pytest.approx(means[0], rel=1e-5)
    assert row["loss"] == pytest.approx(0.5 * means[0] + 0.3 * means[1], rel=1e-5)
    # Evaluated at the training step: a weight of 0 at that step stays 0 in every batch.
    assert evaluator.run({}, "validation", step=0)["loss"] == pytest.approx(0.5 * means[0], rel=1e-5)


def test_a_task_weight_of_a_half_halves_the_loss():
    (batch,) = split_of(8, 8, {"a": np.ones(8)}, np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    whole, half = (Plain(None, {"a": optax.constant_schedule(w)}, 0)({}, batch)[0] for w in (1.0, 0.5))
    assert float(whole) == pytest.approx(float((batch.inputs["x"].values ** 2).sum(1).mean()), rel=1e-5)
    assert float(half) == pytest.approx(0.5 * float(whole), rel=1e-6)


# Adversarial training.


def adversarial(specs, reads=None, coupled=(), tasks=("a",), **options):
    cls = LOSS_TRANSFORMS["adversarial"]
    weights = {name: optax.constant_schedule(1.0) for name in tasks}
    plain = Plain(None, weights, 0, frozenset(coupled), specs=specs)
    if reads:
        object.__setattr__(plain, "reads", reads)
    return cls(cls.Config(**options))(plain)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_the_adversarial_loss_has_its_fraction_of_the_loss(fraction):
    objective = adversarial({"x": InputSpec((3,), "float32", 0)}, fraction=fraction)
    object.__setattr__(objective, "model", objective.inner.model)
    (batch,) = split_of(4, 4, {"a": np.ones(4)}, np.ones((4, 3), np.float32))
    clean, attacked = jnp.full(4, 2.0), jnp.full(4, 10.0)
    sums = objective.weight_sums({}, batch)
    loss, states = objective.loss({}, {"a": (clean, attacked)}, batch, sums)
    assert float(loss) == pytest.approx((1 - fraction) * 2.0 + fraction * 10.0)
    assert finalise(jax.device_get(states))["a/loss"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("details", "fixed"), [({"categories": (0, 60, 0, 3)}, [1, 3]), ({"flags": (2, 3)}, [2, 3]), ({}, [])]
)
def test_an_adversarial_step_has_the_norm_of_the_real_values_and_leaves_the_others(details, fixed):
    real = [column for column in range(4) if column not in fixed]
    draws = np.random.default_rng(0)
    values = draws.normal(size=(6, 4)).astype(np.float32)
    values[:, fixed] = draws.integers(0, 3, (6, len(fixed))) * 20
    spec = InputSpec((4,), "float32", mask_rank=1, details=details)
    objective = adversarial({"x": spec}, radius=0.05)
    seen = []
    plain = type(objective.inner).features
    try:
        type(objective.inner).features = lambda self, p, b, train=True: seen.append(b) or plain(self, p, b, train)
        target = Target(jnp.zeros(6), jnp.ones(6))
        batch = Batch(
            {"x": Input(jnp.asarray(values), jnp.ones((6, 4), bool))}, {"a": target}, jnp.arange(6), jnp.int32(0)
        )
        object.__setattr__(objective, "model", objective.inner.model)
        objective.features({}, batch)
    finally:
        type(objective.inner).features = plain
    step = np.asarray(seen[-1].inputs["x"].values) - values
    np.testing.assert_array_equal(step[:, fixed], 0)
    # The gradient of the sum of squares is parallel to the values.
    np.testing.assert_allclose(step[:, real], 0.05 * values[:, real], rtol=1e-3, atol=1e-6)


IMAGE, WORDS = InputSpec((4, 4, 3), "float32", 0), InputSpec((6,), "int32", 1, {"vocabulary": 9})
CODES = InputSpec((2,), "float32", 1, {"categories": (3, 4)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specs": {"x": IMAGE, "t": WORDS}, "coupled": ["a"]}, "does not support the contrastive tasks a alone"),
        ({"specs": {"t": WORDS}}, "none of the inputs t has real values to perturb"),
        ({"specs": {"x": CODES, "t": WORDS}}, "none of the inputs t, x has real values to perturb"),
    ],
)
def test_adversarial_training_is_refused_where_it_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        adversarial(**options)


def test_adversarial_training_is_refused_where_no_task_reads_real_values():
    objective = adversarial({"x": IMAGE, "t": WORDS})
    tasks = {"a": Constant("a", "encoders.t")}
    with pytest.raises(UserError, match="the tasks a read none of the inputs with real values, x"):
        objective._check_dependence(tasks, ["a"])
    objective._check_dependence({"a": Constant("a", "fused")}, ["a"])
    objective._check_dependence({"a": Constant("a", "encoders.x")}, ["a"])


# CutMix.


@pytest.mark.parametrize("shape", [(60,), (60, 2), (12, 4, 5, 3)])
def test_cutmix_shares_count_valid_elements_only(shape):
    size, draws = 400, np.random.default_rng(0)
    lengths = draws.integers(1, shape[0] + 1, size)
    mask = np.arange(shape[0]) < lengths[:, None]
    own = np.where(mask.reshape(*mask.shape, *(1,) * (len(shape) - 1)), np.ones((size, *shape), np.float32), 0)
    other_mask = np.roll(mask, 1, 0)
    other = 2 * np.roll(own, 1, 0)
    share = np.maximum(s := draws.beta(1, 1, size), 1 - s).astype(np.float32)
    share[::7] = 1.0
    pair = (Input(jnp.asarray(own), jnp.asarray(mask)), Input(jnp.asarray(other), jnp.asarray(other_mask)))
    mixed, found = CutMix.mix(*pair, jnp.asarray(share), rng(size))
    values = np.asarray(mixed.values).reshape(size, -1)
    heard = (values == 1).sum(1) / (values > 0).sum(1)
    np.testing.assert_allclose(found, heard, atol=1e-6)
    assert (np.asarray(found)[::7] == 1).all() and (heard < 1).mean() > 0.5
    # The blend is as long as the example, without gaps.
    np.testing.assert_array_equal(mixed.mask, mask)
    np.testing.assert_array_equal(values.reshape(size, shape[0], -1).all(2), mask)
    # The share is the requested one, up to rounding of each axis, if the partner is at least as long.
    long = np.roll(lengths, 1) >= lengths
    if len(shape) < 4:
        assert np.abs(heard - share)[long & (lengths > 20)].max() < 0.03


# The input pipeline.


class Shown:
    """Modality of two numbers, and a source whose records are all equal."""

    spec = InputSpec((2,), "float32", mask_rank=0)

    def __init__(self, target=1):
        self.target = target

    def process(self, raw):
        return np.asarray(raw, np.float32), np.ones((), bool)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Record({"x": np.ones(2), "z": np.ones(2)}, {"y": self.target})


def function(target=1, spec=None, **options) -> BatchFunction:
    shown, rows = Shown(target), np.arange(4)
    modalities = {"x": shown, "z": shown}
    sampler = lambda step, rows: (np.array([7, 1, 2, -1]), np.zeros(4, int))  # noqa: E731
    targets = {"y": spec or TargetSpec((), "int32", CLASSES)}
    settings = {"modality_dropout": {}, "augment": {}, **options}
    make_rows = functools.partial(PaddedRows, modalities)
    names = list(modalities)
    return BatchFunction(shown, names, make_rows, targets, sampler, rows, slots=1, seed=3, **settings)


def test_augmentation_and_modality_dropout_of_one_row_differ_between_steps():
    jitter = function(augment={"x": [lambda raw, draws: raw + draws.normal(size=2)]})
    values = [jitter(step)[0].inputs["x"].values[0].copy() for step in (0, 1, 2, 0)]
    assert len({each.tobytes() for each in values}) == 3
    np.testing.assert_array_equal(values[0], values[3])
    drop = function(modality_dropout={"x": 0.5})
    present = [bool(drop(step)[0].inputs["x"].mask[0]) for step in range(200)]
    assert np.mean(present) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("target", [6, -1, 2.5, float("nan"), 1e12])
def test_a_label_outside_the_classes_names_its_record(target):
    _, errors = function(target)(0)
    assert errors[0].startswith("target 'y' of record 7 is ")
    pipeline = types.SimpleNamespace(broken={})
    with pytest.raises(
        UserError, match=r"^data: target 'y' of record 7 is .*; correct it, or make the target missing$"
    ):
        Pipeline._count_errors(pipeline, "train", errors)


@pytest.mark.parametrize(
    ("target", "spec", "bad"),
    [
        (5, TargetSpec((), "int32", CLASSES), False),
        (None, TargetSpec((), "int32", CLASSES), False),
        (np.full(6, 1 / 6), TargetSpec((6,), "float32", CLASSES), False),
        (np.full(6, np.nan), TargetSpec((6,), "float32", CLASSES), True),
        (np.full(6, 1.5), TargetSpec((6,), "float32", CLASSES), True),
        (-3.5, TargetSpec((), "float32"), False),
        (np.inf, TargetSpec((), "float32"), True),
    ],
)
def test_targets_of_all_forms_are_checked(target, spec, bad):
    batch, errors = function(target, spec)(0)
    assert bool(errors) == bad
    assert (batch.targets["y"].weight[:3] == (0 if bad or target is None else 1)).all()
    np.testing.assert_array_equal(batch.ids, [7, 1, 2, -1])
