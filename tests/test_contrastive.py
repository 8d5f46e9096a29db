"""Retrieval recall of contrastive tasks, against an explicit loop."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.tasks.metrics import finalise
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
