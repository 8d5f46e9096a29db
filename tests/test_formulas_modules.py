"""Encoders and fusions against their formulas in float64: patches, positions, embeddings, gates, residual blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from mmjax.encoders import ENCODERS
from mmjax.encoders.resnet import ResidualBlock
from mmjax.fusion import FUSIONS
from mmjax.fusion.cross_attention import CrossBlock, FusionLayer
from mmjax.layers import Block, Precision
from mmjax.tokens import Input, InputSpec
from tests.layer_truth import (
    apply,
    attention,
    block,
    feed_forward,
    float64,
    gelu,
    linear,
    norm,
    randomised,
    sincos,
    tokens_of,
)

DRAWS = np.random.default_rng(0)
WIDTH, HEADS = 8, 2


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


def embedding(kind: str, spec: InputSpec, **options) -> nnx.Module:
    """An encoder whose trunk is the identity."""
    cls = ENCODERS[kind]

    def make() -> nnx.Module:
        config = cls.Config(width=WIDTH, depth=1, heads=HEADS, **options)
        encoder = cls(config, spec, precision=Precision(), rngs=rngs())
        del encoder.trunk
        encoder.trunk = lambda tokens, rng: tokens
        return encoder

    return randomised(make)


def patches_of(x: np.ndarray, sizes: tuple[int, ...], convolution) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, width] and grid positions [n, axes] of the patches of an array [*space, channels], row by row."""
    kernel, bias = float64(convolution.kernel), float64(convolution.bias)
    tokens, positions = [], []
    for place in np.ndindex(*(side // size for side, size in zip(x.shape, sizes, strict=False))):
        part = x[tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, sizes, strict=True))]
        tokens.append(np.tensordot(part, kernel, axes=part.ndim) + bias)
        positions.append(place)
    return np.stack(tokens), np.asarray(positions, float)


def test_tokens_of_an_image_are_its_patches_row_by_row_with_their_positions():
    vit = embedding("vit", InputSpec((4, 6, 3), "float32", 0), patch=2)
    images = DRAWS.normal(size=(2, 4, 6, 3))
    found = apply(vit, Input(jnp.asarray(images, jnp.float32), jnp.array([True, False])), None)
    values, positions = patches_of(images[0], (2, 2), vit.patches)
    np.testing.assert_allclose(found.values[0], values + sincos(positions, WIDTH), atol=1e-4)
    np.testing.assert_array_equal(found.positions[0], positions)
    assert found.mask.tolist() == [[True] * 6, [False] * 6]


def test_tokens_of_a_clip_are_its_tubelets_and_valid_with_any_of_their_frames():
    encoder = embedding("video_transformer", InputSpec((4, 4, 2, 3), "float32", 1), patch=2, tubelet=2)
    clips, mask = DRAWS.normal(size=(2, 4, 4, 2, 3)), np.arange(4) < np.array([[3], [2]])
    found = apply(encoder, Input(jnp.asarray(clips, jnp.float32), jnp.asarray(mask)), None)
    values, positions = patches_of(clips[0], (2, 2, 2), encoder.patches)
    np.testing.assert_allclose(found.values[0], values + sincos(positions, WIDTH), atol=1e-4)
    np.testing.assert_array_equal(found.positions[0], positions)
    assert found.mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_tokens_of_a_text_are_scaled_embeddings_with_their_positions():
    encoder = embedding("text_transformer", InputSpec((5,), "int32", 1, details={"vocabulary": 7}))
    words = np.array([[3, 0, 6, 1, 1]])
    found = apply(encoder, Input(jnp.asarray(words), jnp.ones((1, 5), bool)), None)
    expected = float64(encoder.embedding.table)[words[0]] * WIDTH**0.5
    np.testing.assert_allclose(found.values[0], expected + sincos(np.arange(5.0)[:, None], WIDTH), atol=1e-4)


def test_tokens_of_a_table_are_scaled_vectors_or_entries_of_their_own_column():
    sizes = (3, 0, 2, 0)
    encoder = embedding("table_transformer", InputSpec((4,), "float32", 1, details={"categories": sizes}))
    row = np.array([2.0, -1.5, 1.0, 0.5])
    found = apply(encoder, Input(jnp.asarray(row[None], jnp.float32), jnp.array([[True, False, True, True]])), None)
    table, kernel = float64(encoder.embedding.table) * WIDTH**0.5, float64(encoder.kernel)
    expected = np.stack([table[2], row[1] * kernel[0], table[3 + 1], row[3] * kernel[1]]) + float64(encoder.column)
    np.testing.assert_allclose(found.values[0, [0, 2, 3]], expected[[0, 2, 3]], atol=1e-4)
    assert found.mask.tolist() == [[True, False, True, True]] and not found.values[0, 1].any()


@pytest.mark.parametrize(("patch", "stride"), [(4, 4), (4, 1), (5, 3)])
def test_a_patch_of_a_series_is_valid_with_a_step_that_no_earlier_patch_covers(patch, stride):
    count = 3
    length = patch + (count - 1) * stride
    encoder = embedding("series_transformer", InputSpec((length, 2), "float32", 1), patch=patch, stride=stride)
    series = DRAWS.normal(size=(length + 1, length, 2))
    mask = np.arange(length) < np.arange(length + 1)[:, None]
    found = apply(encoder, Input(jnp.asarray(series, jnp.float32), jnp.asarray(mask)), None)
    for steps in range(length + 1):
        # Patch i ends at step i * stride + patch, and the one before it `stride` steps earlier.
        expected = [steps > (i * stride + patch - stride if i else 0) for i in range(count)]
        assert found.mask[steps].tolist() == expected
    kernel, bias = float64(encoder.patches.kernel), float64(encoder.patches.bias)
    values = np.stack([np.tensordot(series[-1, i * stride :][:patch], kernel, axes=2) + bias for i in range(count)])
    np.testing.assert_allclose(found.values[-1], values + sincos(np.arange(3.0)[:, None], WIDTH), atol=1e-4)


def test_a_patch_of_points_is_a_two_stage_pointnet_around_its_centre():
    encoder = embedding("point_transformer", InputSpec((6, 4), "float32", 1), groups=2, neighbours=3)
    points = DRAWS.normal(size=(6, 4))
    points[5] = 100.0  # padding
    mask = np.arange(6) < 5
    found = apply(encoder, Input(jnp.asarray(points[None], jnp.float32), jnp.asarray(mask[None])), None)
    xyz = points[:5, :3]
    first = np.square(xyz - xyz.mean(0)).sum(1).argmax()
    second = np.square(xyz - xyz[first]).sum(1).argmax()
    for token, centre in enumerate((first, second)):
        nearest = np.square(xyz - xyz[centre]).sum(1).argsort()[:3]
        patch = points[nearest] - np.append(xyz[centre], 0)
        inner = linear(encoder.second, gelu(linear(encoder.first, patch)))
        both = np.concatenate([np.broadcast_to(inner.max(0), inner.shape), inner], axis=1)
        pooled = linear(encoder.fourth, gelu(linear(encoder.third, both))).max(0)
        expected = pooled + linear(encoder.position_out, gelu(linear(encoder.position_in, xyz[centre])))
        np.testing.assert_allclose(found.values[0, token], expected, atol=1e-3)
        np.testing.assert_allclose(found.positions[0, token], xyz[centre], atol=1e-6)
    assert found.mask.tolist() == [[True, True]]


def test_equal_points_make_one_patch():
    encoder = embedding("point_transformer", InputSpec((6, 3), "float32", 1), groups=3, neighbours=2)
    points = np.repeat(DRAWS.normal(size=(2, 3)), 3, axis=0)
    found = apply(encoder, Input(jnp.asarray(points[None], jnp.float32), jnp.ones((1, 6), bool)), None)
    assert found.mask.tolist() == [[True, True, False]]


def group_norm(layer, x: np.ndarray) -> np.ndarray:
    """Over space and groups of the channels of an array [height, width, channels]."""
    parts = np.split(x, layer.groups, axis=-1)
    normed = np.concatenate([(part - part.mean()) / np.sqrt(part.var() + 1e-6) for part in parts], axis=-1)
    return normed * float64(layer.scale) + float64(layer.bias)


def convolve(layer, x: np.ndarray) -> np.ndarray:
    kernel = float64(layer.kernel)
    return np.stack([
        sum(scipy.signal.correlate2d(x[..., i], kernel[..., i, o], mode="same") for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ], axis=-1)  # fmt: skip


def test_a_residual_block_is_pre_activated():
    layer = randomised(lambda: ResidualBlock(4, 6, 1, rngs=rngs()))
    x = DRAWS.normal(size=(5, 6, 4)) + 1
    y = np.maximum(group_norm(layer.first_norm, x), 0)
    middle = np.maximum(group_norm(layer.second_norm, convolve(layer.first, y)), 0)
    expected = convolve(layer.shortcut, y) + convolve(layer.second, middle)
    found = apply(layer, jnp.asarray(x[None], jnp.float32), None, 0.0)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["resnet", "spectrogram_resnet"])
def test_the_rate_of_stochastic_depth_grows_from_0_to_that_of_the_last_block(kind):
    cls = ENCODERS[kind]
    config = cls.Config(channels=8, blocks=(1, 2, 1), drop_path=0.3)
    encoder = nnx.eval_shape(lambda: cls(config, cls.example, precision=Precision(), rngs=rngs()))
    assert encoder.drop_rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


# Fusions.


def make_fusion(kind: str, **options) -> nnx.Module:
    cls = FUSIONS[kind]
    return randomised(lambda: cls(cls.Config(**options), {"a": 4, "b": 6}, precision=Precision(), rngs=rngs()))


A, B = DRAWS.normal(size=(3, 5, 4)), DRAWS.normal(size=(3, 2, 6))
PRESENT = {"a": [True, True, False], "b": [True, False, False]}


def both() -> dict:
    return {"a": tokens_of(*A, present=PRESENT["a"]), "b": tokens_of(*B, present=PRESENT["b"])}


def pooled(example: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Means of the tokens of each modality, 0 if it is absent, and the flags of presence."""
    flags = np.array([PRESENT[name][example] for name in "ab"], float)
    return [flag * x[example].mean(0) for flag, x in zip(flags, (A, B), strict=True)], flags


def test_concatenation_is_an_mlp_over_means_and_flags():
    fusion = make_fusion("concatenation", width=7)
    found = apply(fusion, both(), None)["fused"].values
    for example in range(3):
        means, flags = pooled(example)
        hidden = gelu(linear(fusion.up, np.concatenate([*means, flags])))
        assert hidden.shape == (4 * 7,)
        np.testing.assert_allclose(found[example, 0], linear(fusion.down, hidden), atol=1e-4)


def test_a_gated_average_weights_what_is_there_by_a_softmax():
    fusion = make_fusion("gated_average", width=7)
    found = apply(fusion, both(), None)["fused"].values
    for example in range(3):
        means, flags = pooled(example)
        gates = np.exp(linear(fusion.gate, np.concatenate(means))) * flags
        gates = gates / max(gates.sum(), 1e-30)
        mapped = [np.tanh(linear(fusion.maps[name], mean)) for name, mean in zip("ab", means, strict=True)]
        average = gates @ np.stack(mapped)
        expected = average + linear(fusion.out, gelu(norm(fusion.norm, average)))
        np.testing.assert_allclose(found[example, 0], expected, atol=1e-4)


def cross(layer: CrossBlock, queries: np.ndarray, keys: dict[str, np.ndarray]) -> np.ndarray:
    normed = norm(layer.query_norm, queries)
    for name in layer.names:
        queries = queries + attention(layer.attentions[name], normed, norm(layer.key_norms[name], keys[name]))
    return queries + feed_forward(layer.mlp, norm(layer.mlp_norm, queries))


def test_a_round_of_cross_attention_updates_the_modalities_at_once_and_then_the_latents():
    def make_cross(names):
        return CrossBlock(names, WIDTH, HEADS, 12, dropout=0.0, rngs=rngs())

    def make_self():
        return Block(WIDTH, HEADS, 12, rngs=rngs())

    names = ("a", "b", "c")
    pairs = {"a": ("b", "c"), "b": ("a",)}
    layer = randomised(lambda: FusionLayer(names, pairs, make_cross, make_self))
    x = {name: DRAWS.normal(size=(count, WIDTH)) for name, count in zip(names, (3, 4, 2), strict=True)}
    latents = DRAWS.normal(size=(2, WIDTH))
    carry = {name: tokens_of(each) for name, each in x.items()}, tokens_of(latents)
    streams, found = apply(layer, carry, None, 0.0)
    expected = {**x, "a": cross(layer.streams["a"], x["a"], x), "b": cross(layer.streams["b"], x["b"], x)}
    for name in names:
        np.testing.assert_allclose(streams[name].values[0], expected[name], atol=1e-3)
    expected_latents = block(layer.latent_block, cross(layer.readout, latents, expected))
    np.testing.assert_allclose(found.values[0], expected_latents, atol=2e-3)


def test_cross_attention_by_default_pairs_each_modality_with_all_others():
    fusion = make_fusion("cross_attention", width=WIDTH, heads=HEADS, depth=1, queries=3)
    assert fusion.rounds.layers.pairs == {"a": ("b",), "b": ("a",)}
    out = apply(fusion, both(), None)
    assert {name: tokens.values.shape for name, tokens in out.items()} == {
        "a": (3, 5, WIDTH), "b": (3, 2, WIDTH), "fused": (3, 3, WIDTH),
    }  # fmt: skip
