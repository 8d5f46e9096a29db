"""Layers: values and gradients against NumPy and finite differences; residuals kept for the backward pass."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from mmjax.encoders import ENCODERS
from mmjax.layers import Block, GroupNorm, LayerNorm, Precision, first_pool, last_pool
from mmjax.layers.attention.softmax import masked_softmax
from mmjax.layers.linear import add_bias
from mmjax.tokens import Input, InputSpec, Tokens
from tests.compiled import compile_on, topology_mesh


def test_masked_softmax_matches_numpy_and_is_0_without_keys():
    draws = np.random.default_rng(0)
    logits, visible = draws.normal(size=(2, 3, 5)) * 30, draws.random((2, 1, 5)) < 0.6
    visible[1] = False
    truth = np.exp(logits) * visible
    truth = truth / np.where(truth.sum(-1, keepdims=True) > 0, truth.sum(-1, keepdims=True), 1)
    found = masked_softmax(jnp.float32(logits), jnp.array(visible))
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=1e-7)
    assert not np.asarray(found)[1].any()


def test_the_derivative_of_masked_softmax_is_that_of_finite_differences():
    draws = np.random.default_rng(1)
    visible = jnp.array(draws.random((4, 5)) < 0.6).at[2].set(False)
    weights = functools.partial(masked_softmax, visible=visible)
    check_grads(lambda x: jnp.sin(3 * weights(x)), (jnp.float32(draws.normal(size=(4, 5))),), order=1, modes=["rev"])


def tokens(lengths, count=5, width=3):
    mask = np.arange(count) < np.array(lengths)[:, None]
    values = np.random.default_rng(2).normal(size=(len(lengths), count, width)).astype(np.float32)
    return Tokens.make(jnp.array(values), jnp.array(mask))


def test_first_and_last_are_those_of_the_real_tokens_and_0_without_any():
    given = tokens([5, 2, 0, 1])
    values = np.asarray(given.values)
    np.testing.assert_array_equal(first_pool(given), [values[0, 0], values[1, 0], [0, 0, 0], values[3, 0]])
    np.testing.assert_array_equal(last_pool(given), [values[0, 4], values[1, 1], [0, 0, 0], values[3, 0]])
    # Also with missing values at the front.
    turned = Tokens.make(given.values[:, ::-1], given.mask[:, ::-1])
    np.testing.assert_array_equal(first_pool(turned), last_pool(given))


def test_a_class_token_comes_first_attends_to_the_patches_and_is_absent_with_its_image():
    cls, spec = ENCODERS["vit"], InputSpec((8, 8, 3), "float32", mask_rank=0)
    config = cls.Config(width=16, depth=1, heads=2, patch=4, class_token=True)
    vit = cls(config, spec, precision=Precision(), rngs=nnx.Rngs(params=jax.random.key(0)))
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    out = vit(Input(images, jnp.array([True, False])), None)
    assert out.values.shape == (2, 1 + 4, 16) and out.positions[0, :2].tolist() == [[-1, -1], [0, 0]]
    assert out.mask.tolist() == [[True] * 5, [False] * 5] and not out.values[1].any()
    other = vit(Input(images.at[:, 7, 7].add(1), jnp.array([True, False])), None)
    assert jnp.abs(other.values[0, 0] - out.values[0, 0]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_keeps_little_for_its_backward_pass(dtype):
    """A block keeps its input, two norms, query, key, value, mixed values, sum, 4 x width before GELU, and the weights.

    That is 12 arrays of the size of the input. The zeros of masked tokens, once before the block, add one array, and
    mean and standard deviation of the norms a quarter at this width.
    """
    batch, length, width, heads = 2, 64, 32, 2
    block = nnx.eval_shape(lambda: Block(width, heads, 4 * width, rngs=nnx.Rngs(params=jax.random.key(0))))
    graph, state = nnx.split(block)
    mask = jnp.ones((batch, length), bool)

    def backward(parameters, values):
        return jax.vjp(lambda p, v: nnx.merge(graph, p)(Tokens.make(v, mask), None).values, parameters, values)[1]

    values = jax.ShapeDtypeStruct((batch, length, width), dtype)
    kept = jax.tree.leaves(jax.eval_shape(backward, nnx.to_pure_dict(state), values))
    unit = batch * length * width * values.dtype.itemsize
    numbers = [x for x in kept if jnp.issubdtype(x.dtype, jnp.floating) and x.shape[:1] == (batch,)]
    weights = [x for x in numbers if x.shape == (batch, heads, length, length)]
    assert len(weights) == (1 if dtype == "float32" else 2)
    assert sum(x.size * x.dtype.itemsize for x in numbers if x.shape[1] == length) <= 13.5 * unit


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_the_one_of_each_group_over_space_in_float64(groups):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(3, 4, 5, 6)) * 3 + 2
    norm = GroupNorm(6, groups)
    scale, bias = draws.normal(size=(2, 6))
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    expected = np.empty_like(x)
    for example in range(3):
        for group in np.split(np.arange(6), groups):
            part = x[example][..., group]
            expected[example][..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected * scale + bias, atol=2e-5)


def test_layer_norm_is_the_one_of_each_vector_in_float64():
    draws = np.random.default_rng(0)
    x = draws.normal(size=(3, 4, 6)) * 3 + 2
    norm = LayerNorm(6)
    scale, bias = draws.normal(size=(2, 6))
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-5)


def test_the_derivative_of_layer_norm_is_that_of_its_definition_in_float64():
    draws = np.random.default_rng(1)
    x, slope = draws.normal(size=(2, 5, 4, 6)) * 3 + 2
    scale, bias = draws.normal(size=(2, 6))

    def definition(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias

    with jax.enable_x64(True):
        expected = jax.vjp(definition, *map(jnp.asarray, (x, scale, bias)))[1](jnp.asarray(slope))
    graph, _ = nnx.split(LayerNorm(6))

    def norm(x, scale, bias):
        return nnx.merge(graph, {"scale": scale, "bias": bias})(x)

    found = jax.vjp(norm, *(jnp.asarray(a, jnp.float32) for a in (x, scale, bias)))[1](jnp.asarray(slope, jnp.float32))
    for mine, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, truth, atol=2e-5)


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_layer_norm_in_bfloat16_is_as_good_as_its_input(offset):
    """One-pass variance of values far from 0: their own bfloat16 rounding is the larger error."""
    exact = np.random.default_rng(0).normal(size=(64, 512)) + offset
    x = jnp.asarray(exact, jnp.bfloat16)
    expected, of_rounded = (
        (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
        for y in (exact, np.asarray(x, np.float64))
    )
    error = np.abs(np.asarray(LayerNorm(512)(x), np.float64) - of_rounded)
    assert np.all(error <= np.abs(of_rounded) * 2**-8 + np.abs(expected - of_rounded).mean())


def test_the_gradient_of_a_bias_is_a_sum_in_float32():
    draws = np.random.default_rng(0)
    y, slope = (jnp.asarray(draws.normal(size=(8, 512, 3)) + 1, jnp.bfloat16) for _ in range(2))
    bias = jnp.asarray(draws.normal(size=3), jnp.float32)
    mixed, back = jax.vjp(add_bias, y, bias)
    of_y, of_bias = back(slope)
    np.testing.assert_array_equal(mixed, y + bias.astype(jnp.bfloat16))
    np.testing.assert_array_equal(of_y, slope)
    # In bfloat16 a sum of thousands of values is off by a percent.
    assert of_bias.dtype == jnp.float32
    np.testing.assert_allclose(of_bias, np.asarray(slope, np.float64).sum((0, 1)), rtol=1e-5)


def test_the_gradient_of_a_bias_is_scattered_over_a_pod():
    """XLA for TPUs cannot slice a row out of the sum over devices at this width."""
    mesh = topology_mesh("v5p:4x4x4", fsdp=16, tensor=4)

    def gradient(y, slope, bias):
        found = jax.grad(lambda bias: (add_bias(y, bias) * slope).astype(jnp.float32).sum())(bias)
        return jax.lax.with_sharding_constraint(found, jax.P("fsdp"))

    y = (448, 256, 8192), "bfloat16", ("fsdp",)
    compile_on(mesh, gradient, y, y, ((8192,), "float32", ()))
