"""Mixup and CutMix, against NumPy and against the loss of blended probabilities."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.tokens import Batch, Input, InputSpec, Target
from mmjax.training.loss_transforms.mixing import CutMix, Mixup
from tests import contracts

SIZE = 64
SPECS = {
    "picture": InputSpec((8, 6, 3), "float32", mask_rank=0),
    "words": InputSpec((5,), "int32", mask_rank=1, details={"vocabulary": 9}),
    "facts": InputSpec((2,), "float32", mask_rank=1, details={"categories": (0, 3)}),
}


class Nothing:
    """Objective that offers only its attributes."""

    graph, task_weights, seed, layout = None, {}, 5, None

    def __init__(self, coupled=(), specs=None):
        self.coupled, self.specs = frozenset(coupled), SPECS if specs is None else specs

    def prepare(self, batch):
        return batch


def make_batch(shape=(8, 6, 3), ids=0) -> Batch:
    draws = np.random.default_rng(0)
    present = np.arange(SIZE) % 4 != 1
    inputs = {
        "picture": Input(draws.normal(size=(SIZE, *shape)).astype(np.float32), present),
        "words": Input(draws.integers(0, 9, (SIZE, 5)).astype(np.int32), np.ones((SIZE, 5), bool)),
        "facts": Input(draws.integers(0, 3, (SIZE, 2)).astype(np.float32), draws.random((SIZE, 2)) < 0.5),
    }
    # Examples 0 and 1 of every eight have no words.
    inputs["words"].mask[np.arange(SIZE) % 8 < 2] = False
    inputs["facts"].mask[:, 0] |= ~inputs["facts"].mask.any(1)
    weight = (np.arange(SIZE) % 5 != 2).astype(np.float32)
    label = Target(draws.integers(0, 5, SIZE).astype(np.int32), weight)
    return Batch(inputs, {"label": label}, np.arange(ids, ids + SIZE, dtype=np.int32), np.int32(7))


def prepared(kind=Mixup, batch=None, **options):
    transform = kind(kind.Config(**options))(Nothing())
    batch = make_batch() if batch is None else batch
    return batch, transform.prepare(batch)


def shares(batch: Batch, mixed: Batch) -> np.ndarray:
    """Share of the example's own target, from the weights; 1 without a target."""
    own, other = np.asarray(mixed.targets["label"].weight), np.asarray(mixed.targets["partner of label"].weight)
    weight = np.asarray(batch.targets["label"].weight)
    np.testing.assert_allclose(own[weight == 0], 0)
    found = np.ones(SIZE)
    found[weight > 0] = own[weight > 0]
    # The partner's weight is the remainder, if the partner has a target.
    np.testing.assert_allclose(other[weight > 0], (1 - found[weight > 0]) * np.roll(weight, 1)[weight > 0], atol=1e-6)
    return found


def test_mixup_is_the_weighted_mean_of_neighbours_that_have_the_same_inputs():
    batch, mixed = prepared()
    found, values = shares(batch, mixed), np.asarray(mixed.inputs["picture"].values)
    present = batch.inputs["picture"].mask
    zeroed = np.where(present[:, None, None, None], batch.inputs["picture"].values, 0)
    expected = zeroed * found[:, None, None, None] + np.roll(zeroed, 1, 0) * (1 - found[:, None, None, None])
    known = np.asarray(batch.targets["label"].weight) > 0
    np.testing.assert_allclose(values[known], expected[known], atol=1e-5)
    words = np.asarray(batch.inputs["words"].present)
    same_inputs = present & (present == np.roll(present, 1)) & (words == np.roll(words, 1))
    assert (
        same_inputs.sum() > 20
        and (found[~same_inputs] == 1).all()
        and (found[same_inputs & known] < 1).all()
        and (found >= 0.5).all()
    )
    for name in ("words", "facts"):
        # Token ids and table rows are taken from the example with the larger share.
        np.testing.assert_array_equal(mixed.inputs[name].mask, batch.inputs[name].mask)
        own = np.where(batch.inputs[name].mask, batch.inputs[name].values, 0)
        np.testing.assert_array_equal(mixed.inputs[name].values, own)
    np.testing.assert_array_equal(mixed.targets["partner of label"].values, np.roll(np.where(
        batch.targets["label"].weight > 0, batch.targets["label"].values, 0), 1))  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 6, 3), (100,), (40, 5, 4, 2)])
def test_cutmix_replaces_a_box_as_large_as_the_partners_share(shape):
    batch = make_batch(shape)
    _, mixed = prepared(CutMix, batch)
    found, values = shares(batch, mixed), np.asarray(mixed.inputs["picture"].values)
    present = batch.inputs["picture"].mask
    own = np.where(present.reshape(-1, *(1,) * len(shape)), batch.inputs["picture"].values, 0)
    other, boxes = np.roll(own, 1, 0), 0
    for row in np.flatnonzero(found < 1):
        cut = (values[row] == other[row]) & (values[row] != own[row])
        np.testing.assert_array_equal(values[row], np.where(cut, other[row], own[row]))
        assert cut.mean() == pytest.approx(1 - found[row], abs=1e-6)
        places = np.argwhere(cut)
        if len(places):
            box = tuple(slice(low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True))
            assert cut[box].all() and cut.sum() == cut[box].sum(), "one whole box"
            boxes += 1
    assert boxes > 10


def test_the_shares_are_those_of_the_beta_distribution_folded_at_a_half():
    everything = []
    for start in range(0, 40 * SIZE, SIZE):
        batch = make_batch(ids=start)
        batch.inputs["words"].mask[:] = True
        batch.inputs["picture"] = Input(np.ones((SIZE, 2), np.float32), np.ones(SIZE, bool))
        _, mixed = prepared(batch=batch, alpha=0.7)
        everything.append(shares(batch, mixed)[np.asarray(batch.targets["label"].weight) > 0])
    found = np.concatenate(everything)
    truth = np.random.default_rng(1).beta(0.7, 0.7, 100_000)
    truth = np.maximum(truth, 1 - truth)
    quantiles = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(truth, quantiles), atol=0.03)


def test_the_rate_is_the_share_of_examples_that_are_blended():
    count = 0
    for start in range(0, 20 * SIZE, SIZE):
        batch = make_batch(ids=start)
        batch.inputs["words"].mask[:] = True
        batch.inputs["picture"] = Input(batch.inputs["picture"].values, np.ones(SIZE, bool))
        count += int((shares(*prepared(batch=batch, rate=0.25)) < 1).sum())
    known = 20 * (make_batch().targets["label"].weight > 0).sum()
    assert count / known == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_loss_is_that_of_blended_probabilities(kind):
    case = contracts.Case(contracts.Part("loss_transform", kind))
    batch = contracts.make_batch(case.specs)
    # All examples have a target and full masks, so that blended probabilities are defined.
    inputs = {name: Input(x.values, np.ones_like(x.mask)) for name, x in batch.inputs.items()}
    label = batch.targets["label"]
    targets = {**batch.targets, "label": Target(label.values, np.ones_like(label.weight))}
    batch = dataclasses.replace(batch, inputs=inputs, targets=targets).zero_absent()
    mixed = case.objective.prepare(batch)
    share = np.asarray(mixed.targets["label"].weight)[:, None]
    assert ((share < 1).sum()) > 8
    one_hot = np.eye(5)[np.asarray(label.values)]
    soft = jnp.asarray(share * one_hot + (1 - share) * np.roll(one_hot, 1, 0), jnp.float32)
    blended = dataclasses.replace(mixed, targets={**batch.targets, "label": Target(soft, np.ones_like(label.weight))})
    found, _ = case.objective(case.parameters, mixed)
    truth, _ = case.plain(case.parameters, blended)
    assert float(found) == pytest.approx(float(truth), rel=1e-5)


def test_evaluation_does_not_blend():
    case = contracts.Case(contracts.Part("loss_transform", "mixup"))
    batch = contracts.make_batch(case.specs)
    found, _ = case.objective(case.parameters, batch, False)
    truth, _ = case.plain(case.parameters, batch, False)
    assert float(found) == pytest.approx(float(truth), rel=1e-6)


def test_tasks_that_compare_examples_are_refused():
    with pytest.raises(UserError, match="mixing does not support the contrastive tasks pairs; remove these tasks"):
        Mixup(Mixup.Config())(Nothing(coupled=["pairs"]))


def test_inputs_that_cannot_be_blended_are_refused():
    with pytest.raises(UserError, match="none of the inputs facts, words can be mixed; remove the mixing"):
        Mixup(Mixup.Config())(Nothing(specs={name: SPECS[name] for name in ("words", "facts")}))
