"""Masked elements have no influence: padding, other segments, and examples that lack one input of a pair.

The contract suite shows that the values under a mask do not matter. These tests show that the result equals that of
data without the masked part.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.layers import Attention, AttentionPooling, attend, mean_pool
from mmjax.tokens import Batch, Input, Target, Tokens
from tests.contracts import Case, Part, assert_close, assert_identical, make_batch

WIDTH, LENGTH = 8, 5


@pytest.fixture
def draws():
    return np.random.default_rng(4)


def test_tokens_are_zero_where_they_are_masked(draws):
    mask = np.array([[True, False, True], [False, False, False]])
    values = draws.normal(size=(2, 3, WIDTH)).astype(np.float32)
    values[~mask] = np.nan
    tokens = Tokens.make(jnp.asarray(values), jnp.asarray(mask))
    for found in (tokens, tokens.with_values(jnp.asarray(values))):
        np.testing.assert_array_equal(found.values, np.where(mask[..., None], values, 0))
    assert list(tokens.present) == [True, False]


def test_a_query_that_sees_no_key_gets_exactly_zero_and_sends_no_gradient(draws):
    query, key, value = (jnp.asarray(draws.normal(size=(1, 3, 2, 4)), jnp.float32) for _ in range(3))
    segments = jnp.array([[0, -1, 1]]), jnp.array([[0, 1, 0]])
    np.testing.assert_array_equal(attend(query, key, value, *segments)[0, 1], 0)
    gradients = jax.grad(lambda *parts: attend(*parts, *segments)[0, 1].sum(), argnums=(0, 1, 2))(query, key, value)
    assert all(not leaf.any() for leaf in gradients)


def test_a_key_that_is_not_visible_has_no_influence(draws):
    query, key, value = (jnp.asarray(draws.normal(size=(1, 3, 2, 4)), jnp.float32) for _ in range(3))
    one, hidden = jnp.zeros((1, 3), jnp.int32), jnp.array([[0, 0, -2]])
    truth = attend(query, key[:, :2], value[:, :2], one, one[:, :2])
    np.testing.assert_allclose(attend(query, key, value, one, hidden), truth, rtol=1e-6)
    # A hidden key may be much larger than the visible ones.
    np.testing.assert_allclose(attend(query, key.at[:, 2].mul(1e4), value, one, hidden), truth, rtol=1e-6)


def padded(tokens: Tokens, more: int) -> Tokens:
    def pad(x, value=0):
        return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

    return Tokens(pad(tokens.values), pad(tokens.mask), pad(tokens.positions), pad(tokens.segments))


def some_tokens(draws) -> Tokens:
    values = jnp.asarray(draws.normal(size=(2, LENGTH, WIDTH)), jnp.float32)
    return Tokens.make(values, jnp.ones((2, LENGTH), bool))


def test_padding_changes_neither_attention_nor_pooling(draws):
    tokens, rngs = some_tokens(draws), nnx.Rngs(params=1)
    attention, pool = Attention(WIDTH, 2, rngs=rngs), AttentionPooling(WIDTH, 2, 16, rngs=rngs)
    # Masked keys must be excluded, not only zeroed: with a bias they would have values.
    attention.value.bias[...] = jnp.ones(WIDTH)
    pool.attention.value.bias[...] = jnp.ones(WIDTH)
    long = padded(tokens, 3)
    found = attention(long, long)
    np.testing.assert_allclose(found[:, :LENGTH], attention(tokens, tokens), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, LENGTH:], 0)
    np.testing.assert_allclose(mean_pool(long), mean_pool(tokens), rtol=1e-6)
    np.testing.assert_allclose(pool(long), pool(tokens), rtol=1e-5, atol=1e-6)


def test_segments_do_not_see_each_other(draws):
    tokens = some_tokens(draws)
    attention = Attention(WIDTH, 2, rngs=nnx.Rngs(params=1))
    packed = dataclasses.replace(tokens, segments=jnp.broadcast_to(jnp.array([0, 0, 1, 1, 1]), (2, LENGTH)))
    found = attention(packed, packed)
    for part in (slice(0, 2), slice(2, 5)):
        alone = Tokens.make(tokens.values[:, part], tokens.mask[:, part])
        np.testing.assert_allclose(found[:, part], attention(alone, alone), rtol=1e-5, atol=1e-6)


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Batch of the selected rows; rows may repeat."""
    return Batch(
        {name: Input(x.values[rows], x.mask[rows]) for name, x in batch.inputs.items()},
        {name: Target(t.values[rows], t.weight[rows]) for name, t in batch.targets.items()},
        batch.ids[rows],
        batch.step,
    )


def evaluated(case: Case, batch: Batch):
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(lambda p, b: case.plain(p, b, train=False))(case.parameters, batch))


def test_a_weight_of_n_equals_n_copies_of_an_example():
    case = Case(Part("fusion", "concatenation"))
    batch = make_batch(case.specs)
    weight = (np.arange(batch.size) % 3).astype(np.float32)
    batch.targets["label"] = dataclasses.replace(batch.targets["label"], weight=weight)
    present = np.stack([x.present for x in batch.inputs.values()]).any(axis=0)
    assert not present.all() and (weight[~present] > 0).any(), "no example has a weight but no inputs"
    repeated = rows_of(batch, np.repeat(np.arange(batch.size), (weight * present).astype(int)))
    repeated.targets["label"] = dataclasses.replace(
        repeated.targets["label"], weight=np.ones(repeated.size, np.float32)
    )
    assert_close(evaluated(case, batch), evaluated(case, repeated))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("positives", [None, "label"])
def test_an_example_that_lacks_one_of_a_pair_is_neither_positive_nor_negative(loss, positives):
    case = Case(Part("task", "contrastive"), loss=loss, positives=positives)
    batch = make_batch(case.specs)
    both = np.stack([x.present for x in batch.inputs.values()]).all(axis=0)
    if positives:
        # Without a label, the positives of an example are unknown.
        both &= batch.targets[positives].weight > 0
    assert 2 < both.sum() < batch.size
    whole, part = (evaluated(case, b)[1] for b in (batch, rows_of(batch, np.flatnonzero(both))))
    assert_close(*({k: v for k, v in states.items() if k.startswith("other/")} for states in (whole, part)))


def test_soft_targets_without_weight_move_no_gradient():
    case = Case(Part("task", "classification"), target="soft")
    clean, dirty = make_batch(case.specs), make_batch(case.specs, garbage=True)
    assert np.isnan(dirty.targets["soft"].values).any()
    assert_identical(case.gradients(dirty), case.gradients(clean))
