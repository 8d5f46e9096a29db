"""Retrieval recall of contrastive tasks, against an explicit loop."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.tasks.contrastive import Contrastive
from mmjax.tasks.metrics import finalise
from mmjax.tokens import Tokens
from tests.contracts import Case, Part, make_batch


@pytest.fixture(scope="module")
def case():
    return Case(Part("task", "contrastive"))


def recalls(case, features):
    task = nnx.merge(case.graph, case.parameters).tasks["other"]
    batch = make_batch(case.specs)
    row = finalise({f"other/{name}": state for name, state in task.metrics(features, batch).items()})
    return task, batch, row


def test_recall_at_k_matches_an_explicit_loop(case):
    draws = np.random.default_rng(0)
    first = draws.normal(size=(16, 8))
    second = first + 3.0 * draws.normal(size=(16, 8))
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    task, batch, row = recalls(case, (jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)))
    weights = np.asarray(task.weights(batch))
    valid = np.flatnonzero(np.asarray(batch.inputs["first"].present) & np.asarray(batch.inputs["second"].present))
    for k in (1, 5):
        total = 0.0
        for scores in (first @ second.T, second @ first.T):
            for i in valid:
                ranked = sorted(valid, key=lambda j, scores=scores, i=i: -scores[i, j])
                total += 0.5 * weights[i] * (i in ranked[:k])
        assert row[f"other/recall@{k}"] == pytest.approx(total / weights[valid].sum(), abs=1e-6)
    assert 0.1 < row["other/recall@1"] < row["other/recall@5"] < 1


def test_constant_features_have_recall_0(case):
    same = jnp.full((16, 8), 8**-0.5)
    row = recalls(case, (same, same))[2]
    assert row["other/recall@1"] == 0 and row["other/recall@5"] == 0


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_prediction_of_a_pair_is_its_cosine_similarity(loss):
    draws = np.random.default_rng(0)
    values = {name: draws.normal(size=(5, 3, 8)).astype(np.float32) for name in ("encoders.a", "encoders.b")}
    values["encoders.b"][2] = 0  # an absent input
    masks = {name: np.abs(value).sum(-1) > 0 for name, value in values.items()}
    outputs = {name: Tokens.make(jnp.asarray(values[name]), jnp.asarray(masks[name])) for name in values}
    config = Contrastive.Config(pair=tuple(values), loss=loss, width=4)
    task = Contrastive(config, "pairs", dict.fromkeys(values, 8), {}, rngs=nnx.Rngs(0))
    found = [row["similarity"] for row in task.predictions(task.features(outputs))]
    sides = [
        values[name].astype(np.float64).mean(1) @ np.asarray(task.maps[side].kernel[...], np.float64)
        for side, name in enumerate(values)
    ]
    norms = np.prod([np.linalg.norm(side, axis=1) for side in sides], axis=0)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.sum(sides[0] * sides[1], axis=1) / norms)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[2] == 0 and np.ptp(found) > 0.1
