"""Features of an example do not depend on the amount of padding, in any encoder of inputs of variable length."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.encoders import ENCODERS
from mmjax.layers import GroupNorm, Precision
from mmjax.layers.convolution import Convolution
from mmjax.tokens import Input
from tests import contracts

LENGTHS = {
    # Valid elements, then array lengths: exact fit, slightly longer, other remainders, much longer.
    "spectrogram_transformer": (3001, (3001, 3202, 4999)),
    "spectrogram_resnet": (3001, (3001, 3202, 4999)),
    "waveform_cnn": (3001, (3001, 3202, 4999)),
    "series_transformer": (19, (20, 24, 40)),
    "video_transformer": (3, (4, 8)),
    "text_transformer": (5, (5, 9, 16)),
    "point_transformer": (7, (8, 24)),
}
OPTIONS = {
    "series_transformer": [{}, {"patch": 8, "stride": 4}],
    "spectrogram_transformer": [{"normalise": name, "reduction": r} for name, r in (("none", 4), ("recording", 6))],
    "spectrogram_resnet": [{"normalise": "none", "blocks": (1, 1, 1)}, {"normalise": "recording"}],
    "waveform_cnn": [{}, {"channels": (8, 16), "kernels": (7, 3), "strides": (3, 2)}],
}
CASES = [(kind, options) for kind in LENGTHS for options in OPTIONS.get(kind, [{}])]


def test_every_encoder_of_variable_length_is_listed():
    # The columns of a table are not a sequence.
    variable = {kind for kind, cls in ENCODERS.items() if cls.example.mask_rank} - {"table_transformer"}
    assert variable == set(LENGTHS)


@pytest.mark.parametrize("kind, options", CASES, ids=str)
def test_features_do_not_depend_on_the_length_of_the_padding(kind, options):
    cls, (real, lengths) = ENCODERS[kind], LENGTHS[kind]
    config = cls.Config(**contracts.small(cls, **options))
    draws, shape = np.random.default_rng(0), cls.example.shape[1:]
    if cls.example.dtype == "int32":
        elements = draws.integers(0, cls.example.details["vocabulary"], (real, *shape)).astype(np.int32)
    else:
        elements = draws.normal(size=(real, *shape)).astype(np.float32)
    found = []
    for length in lengths:
        spec = dataclasses.replace(cls.example, shape=(length, *shape))
        encoder = cls(config, spec, precision=Precision(), rngs=nnx.Rngs(params=jax.random.key(0)))
        graph, state = nnx.split(encoder)
        # Biases initialised to 0 would hide their effect on padding.
        state = jax.tree.map(lambda leaf: leaf + 0.1, state)
        values = np.zeros((2, length, *shape), spec.dtype)
        # The second example is one element shorter.
        values[0, :real] = values[1, :real] = elements
        mask = np.arange(length) < np.array([real, real - 1])[:, None]
        values[1, real - 1] = 0
        with jax.default_matmul_precision("highest"):
            tokens = jax.jit(lambda s, x, g=graph: nnx.merge(g, s)(x, None))(state, Input(values, mask))
        found.append([np.asarray(v)[np.asarray(m)] for v, m in zip(tokens.values, tokens.mask, strict=True)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.shape == two.shape and len(one)
            np.testing.assert_allclose(two, one, atol=1e-4 * np.abs(one).max())


def test_group_norm_over_valid_steps_is_that_of_the_cropped_array_in_float64():
    draws, groups, count = np.random.default_rng(0), 2, 5
    x = draws.normal(size=(8, 3, 6)) * 3 + 100
    norm = GroupNorm(6, groups)
    scale, bias = draws.normal(size=(2, 6))
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    expected = np.zeros_like(x)
    for group in np.split(np.arange(6), groups):
        part = x[:count][..., group]
        expected[:count][..., group] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    expected[:count] = expected[:count] * scale + bias
    found = norm(jnp.asarray(x[None], jnp.float32), jnp.arange(8)[None] < count)
    np.testing.assert_allclose(found[0], expected, atol=2e-4)
    nothing = norm(jnp.asarray(x[None], jnp.float32), jnp.zeros((1, 8), bool))
    assert not np.asarray(nothing).any()


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2), (1, 2), (4, 2), (80, 20), (7, 3)])
def test_an_aligned_convolution_is_the_sum_over_a_window_that_starts_at_a_fixed_place(kernel, stride):
    layer = Convolution(1, 1, (kernel,), stride=(stride,), padding="ALIGNED", bias=False, rngs=nnx.Rngs(0))
    same = Convolution(1, 1, (kernel,), stride=(stride,), padding="SAME", bias=False, rngs=nnx.Rngs(0))
    weights = np.asarray(layer.kernel[...], np.float64)[:, 0, 0]
    for length in (kernel + 2 * stride, kernel + 2 * stride + 1):
        x = np.random.default_rng(0).normal(size=length)
        left, steps = max(kernel - stride, 0) // 2, -(-length // stride)
        padded = np.concatenate([np.zeros(left), x, np.zeros(kernel + stride)])
        expected = [padded[step * stride :][:kernel] @ weights for step in range(steps)]
        np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)[None, :, None])[0, :, 0], expected, atol=1e-5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4 * stride * kernel, 1)), jnp.float32)
    # At multiples of the stride it equals XLA's own convolution.
    np.testing.assert_array_equal(layer(x), same(x))
