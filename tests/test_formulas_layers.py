"""Layers against formulas: positions, dropout, stochastic depth, rounding, convolutions, initial scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from mmjax.layers import AttentionPooling, Block, Randomness, Stack, sincos_positions
from mmjax.layers.convolution import Convolution
from mmjax.layers.linear import Linear
from mmjax.layers.randomness import drop_path, dropout
from mmjax.sharding import MeshConfig, make_mesh
from mmjax.sharding.rules import spec_for
from mmjax.training.optim.moments import in_bfloat16, stochastic_round
from tests import layer_truth
from tests.layer_truth import apply, attention, feed_forward, norm, randomised, tokens_of


def randomness(examples: int, seed: int = 3, step: int = 5) -> Randomness:
    return Randomness.make(seed, jnp.int32(step), jnp.arange(examples))


@pytest.mark.parametrize(("width", "axes"), [(16, 1), (24, 2), (22, 3)])
def test_positions_are_sines_and_cosines_of_geometric_frequencies(width, axes):
    positions = np.random.default_rng(0).uniform(-2, 40, (2, 5, axes)).astype(np.float32)
    expected = np.zeros((2, 5, width))
    pairs = width // (2 * axes)
    for axis in range(axes):
        for pair in range(pairs):
            angle = positions[..., axis].astype(np.float64) / 10_000 ** (pair / pairs)
            expected[..., 2 * pairs * axis + pair] = np.sin(angle)
            expected[..., 2 * pairs * axis + pairs + pair] = np.cos(angle)
    np.testing.assert_allclose(sincos_positions(positions, width), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_its_rate(rate):
    x = jnp.full((64, 100), 3.0)
    kept = np.asarray(dropout(x, rate, randomness(64)))
    np.testing.assert_allclose(np.unique(kept), [0.0, 3.0 / (1 - rate)], rtol=1e-6)
    # Four standard errors of 6,400 draws.
    assert abs((kept == 0).mean() - rate) < 4 * (rate * (1 - rate) / 6400) ** 0.5
    assert (np.asarray(dropout(x, rate, None)) == 3.0).all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_stochastic_depth_keeps_or_drops_whole_examples_and_the_mean(rate):
    kept = np.asarray(drop_path(jnp.full((4000, 3), 3.0), rate, randomness(4000)))
    assert (kept == kept[:, :1]).all()
    np.testing.assert_allclose(np.unique(kept), [0.0, 3.0 / (1 - rate)], rtol=1e-6)
    assert abs((kept[:, 0] == 0).mean() - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5


def correlation(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def uniforms(rng: Randomness, size: int = 4000) -> np.ndarray:
    return np.asarray(rng.bits((size,)), np.float64) / 2**32


@pytest.mark.parametrize(
    "other",
    [
        randomness(2, seed=4),
        randomness(2, step=6),
        randomness(2).fold_in(1),
        randomness(2).fold_in("name"),
        Randomness.make(3, jnp.int32(5), jnp.arange(2) + 1),
    ],
    ids=["seed", "step", "layer", "name", "example"],
)
def test_draws_are_uniform_and_independent_of_those_of_another_seed_step_layer_or_example(other):
    mine, others = uniforms(randomness(2).fold_in(0)), uniforms(other.fold_in(0))
    for draws in (mine, others):
        np.testing.assert_allclose([draws.mean(), draws.var()], [1 / 2, 1 / 12], atol=0.01)
    assert abs(correlation(mine, others)) < 0.05 and abs(correlation(mine[0], mine[1])) < 0.05
    if other.seeds.shape == (2,):
        assert not set(mine[0]) & set(others[0]), "the draws are a permutation of each other"


class Recorder(nnx.Module):
    """Records the dropout mask and the drop rate of each layer in a carry [2, depth, B, 50]."""

    def __init__(self, rngs: nnx.Rngs):
        self.unused = nnx.Param(jnp.zeros(()))

    def __call__(self, carry, rng, drop_rate):
        ones = jnp.ones(carry.shape[2:])
        now = jnp.stack([dropout(ones, 0.5, rng), ones * drop_rate])
        return jnp.concatenate([carry[:, 1:], now[:, None]], axis=1)


@pytest.mark.parametrize("scan", [True, False])
def test_each_layer_has_masks_of_its_own_and_rates_grow_from_0_to_that_of_the_last(scan):
    depth = 4
    stack = Stack(Recorder, depth, rngs=nnx.Rngs(params=0), drop_path=0.3, scan=scan)
    masks, rates = np.asarray(stack(jnp.zeros((2, depth, 8, 50)), rng=randomness(8)))
    np.testing.assert_allclose(rates[:, 0, 0], [0.0, 0.1, 0.2, 0.3], atol=1e-6)
    for one in range(depth):
        for other in range(one):
            assert abs(correlation(masks[one], masks[other])) < 0.2


def test_stochastic_rounding_draws_for_each_element_array_and_update():
    # 1 + 2^-9 is a quarter of the way between two neighbours in bfloat16.
    x = jnp.full((4000,), 1 + 2**-9, jnp.float32)
    up = [
        np.asarray(stochastic_round(x, array, jnp.int32(update)).astype(jnp.float32)) > 1
        for array, update in ((0, 0), (1, 0), (0, 1))
    ]
    for draws in up:
        assert abs(draws.mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    first, array, update = up
    assert abs(correlation(first, array)) < 0.1 and abs(correlation(first, update)) < 0.1


def test_two_moments_of_equal_value_are_rounded_apart():
    import optax

    optimizer = in_bfloat16(optax.trace(0.5))
    parameters = {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}
    gradients = jax.tree.map(lambda x: x + 1 + 2**-9, parameters)
    _, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
    a, b = (np.asarray(state.inner.trace[name].astype(jnp.float32)) > 1 for name in "ab")
    assert abs(correlation(a, b)) < 0.1


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_scipy(stride):
    layer = Convolution(2, 3, (3, 3), stride=(stride,) * 2, rngs=nnx.Rngs(params=0))
    parameters = nnx.to_pure_dict(nnx.state(layer))
    kernel = next(leaf for leaf in jax.tree.leaves(parameters) if leaf.ndim == 4)
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2)).astype(np.float32)
    full = np.stack(
        [
            sum(scipy.signal.correlate2d(x[0, ..., i], np.asarray(kernel)[..., i, o], mode="same") for i in range(2))
            for o in range(3)
        ],
        axis=-1,
    )
    # SAME padding of an even kernel size with stride 2 starts one element later.
    expected = full if stride == 1 else full[1::2, 1::2]
    np.testing.assert_allclose(layer(jnp.asarray(x))[0], expected, atol=1e-4)


def test_a_linear_layer_keeps_the_variance():
    layer = Linear(400, 500, rngs=nnx.Rngs(params=0))
    y = layer(jax.random.normal(jax.random.key(1), (200, 400)))
    assert 0.9 < float(y.var()) < 1.1


WIDTH, HEADS, HIDDEN = 8, 2, 12


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


X = np.random.default_rng(0).normal(size=(5, WIDTH))


def test_a_block_is_its_formula_in_float64():
    block = randomised(lambda: Block(WIDTH, HEADS, HIDDEN, rngs=rngs()))
    found = apply(block, tokens_of(X), None).values[0]
    np.testing.assert_allclose(found, layer_truth.block(block, X), atol=2e-4)


def test_attention_pooling_is_its_formula_in_float64():
    pool = randomised(lambda: AttentionPooling(WIDTH, HEADS, HIDDEN, rngs=rngs()))
    pooled = attention(pool.attention, np.asarray(pool.query[...], np.float64), X)
    expected = pooled + feed_forward(pool.mlp, norm(pool.norm, pooled))
    found = apply(pool, tokens_of(X))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_dropout_of_a_block_acts_on_both_branches_apart():
    block = randomised(lambda: Block(WIDTH, HEADS, HIDDEN, dropout=0.5, rngs=rngs()))
    rng = randomness(1)
    normed = norm(block.attention_norm, X)
    masks = [2.0 * np.asarray(rng.fold_in(name).keep_mask(0.5, X.shape))[0] for name in ("attention", "mlp")]
    assert abs(correlation(*masks)) < 0.5
    middle = X + masks[0] * attention(block.attention, normed, normed)
    expected = middle + masks[1] * feed_forward(block.mlp, norm(block.mlp_norm, middle))
    np.testing.assert_allclose(apply(block, tokens_of(X), rng).values[0], expected, atol=1e-3)


def test_dimensions_are_split_where_the_mesh_axes_divide_them():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    names = ("batch", "tokens", "heads", "none")
    assert spec_for(mesh, names, (8, 5, 4, 3)) == jax.P(("data", "fsdp"), None, "tensor", None)
    assert spec_for(mesh, names, (6, 5, 3, 3)) == jax.P(None, None, None, None)
