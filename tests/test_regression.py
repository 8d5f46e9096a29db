"""Regression against SciPy's Huber loss and scikit-learn's metrics, in the target's own unit."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from flax import nnx

from mmjax.config import build
from mmjax.data.batching import BatchFunction
from mmjax.data.dataset import Record
from mmjax.data.rows import PaddedRows
from mmjax.errors import UserError
from mmjax.tasks.metrics import finalise, merge
from mmjax.tasks.regression import Regression
from mmjax.tokens import Batch, Input, Target, TargetSpec

SIZE = 40
DRAWS = np.random.default_rng(0)
VALUES = (500 + 20 * DRAWS.normal(size=SIZE)).astype(np.float32)
WEIGHT = (np.arange(SIZE) % 4 != 1) * np.where(np.arange(SIZE) % 2, 0.5, 1.0)
ANSWERS = (VALUES + 8 * DRAWS.normal(size=SIZE)).astype(np.float32)


TARGETS = {
    "height": TargetSpec((), "float32", mean=500.0, std=20.0),
    "label": TargetSpec((), "int32", ("a",)),
}


def make(**options) -> Regression:
    config = build(Regression.Config, {"target": "height", **options}, "tasks.height")
    return Regression(config, "height", {"fused": 8}, TARGETS, rngs=nnx.Rngs(0))


def batch(rows=slice(None)) -> Batch:
    size = len(VALUES[rows])
    inputs = {"facts": Input(jnp.ones((size, 2)), jnp.ones((size, 2), bool))}
    # Batches contain standardised targets.
    standardised = TARGETS["height"].standardise(VALUES[rows])
    target = Target(jnp.asarray(standardised, jnp.float32), jnp.asarray(WEIGHT[rows], jnp.float32))
    return Batch(inputs, {"height": target}, np.arange(size, dtype=np.int32), np.int32(0))


def features(rows=slice(None)):
    return jnp.asarray((ANSWERS[rows] - 500) / 20)


@pytest.mark.parametrize("delta", [None, 0.2, 1.0])
def test_the_loss_is_that_of_the_standardised_error(delta):
    errors = (ANSWERS.astype(np.float64) - VALUES) / 20
    truth = errors**2 / 2 if delta is None else scipy.special.huber(delta, errors)
    np.testing.assert_allclose(make(delta=delta).losses(features(), batch()), truth, atol=1e-5)


def test_metrics_are_those_of_scikit_learn_in_the_unit_of_the_target_and_add_up_over_parts():
    task = make()
    parts = [task.metrics(features(rows), batch(rows)) for rows in (slice(0, 7), slice(7, SIZE))]
    for states in (task.metrics(features(), batch()), merge(*parts)):
        found = finalise({f"height/{name}": state for name, state in states.items()})
        truth = {
            "height/mean_absolute_error": sklearn.metrics.mean_absolute_error(VALUES, ANSWERS, sample_weight=WEIGHT),
            "height/root_mean_square_error": sklearn.metrics.root_mean_squared_error(
                VALUES, ANSWERS, sample_weight=WEIGHT
            ),
            "height/r2": sklearn.metrics.r2_score(VALUES, ANSWERS, sample_weight=WEIGHT),
        }
        assert found == pytest.approx(truth, rel=1e-4)


def test_no_metrics_without_examples_and_no_r2_for_constant_targets():
    # The second example has weight 0.
    states = make().metrics(features(slice(1, 2)), batch(slice(1, 2)))
    assert finalise({f"height/{name}": state for name, state in states.items()}) == {}
    one = make().metrics(features(slice(0, 1)), batch(slice(0, 1)))
    assert "height/r2" not in finalise({f"height/{name}": state for name, state in one.items()})


def test_answers_are_in_the_unit_of_the_target():
    assert [row["answer"] for row in make().predictions(np.array([0.0, -1.5]))] == [500.0, 470.0]


def test_targets_are_centred_before_they_are_rounded():
    """Unix time in steps of one second, where float32 has a resolution of 128 s."""
    times = 1.7e9 + np.arange(256.0)
    mean, std = float(times.mean()), float(times.std())
    spec = TargetSpec((), "float32", mean=mean, std=std)
    records = [Record({}, {"height": time}) for time in times]

    def sampler(step, rows):
        return np.arange(256), np.zeros(256, int)

    make_rows = functools.partial(PaddedRows, {})
    function = BatchFunction(records, (), make_rows, {"height": spec}, sampler, np.arange(256), 1, 0, {}, {})
    found = function(0)[0].targets["height"].values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (times - mean) / std, rtol=1e-6)
    # Class ids and soft labels are not standardised.
    assert TARGETS["label"].standardise(3) == 3


@pytest.mark.parametrize(
    "options, said",
    [
        ({"target": "hieght"}, "tasks.height.target: the data has no target 'hieght'; did you mean 'height'?"),
        ({"target": "label"}, "tasks.height.target: 'label' is not a float32 scalar; choose a target that is"),
        ({"delta": 0.0}, "tasks.height.delta: "),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(options, said):
    with pytest.raises(UserError) as error:
        make(**options)
    assert str(error.value).startswith(said)
