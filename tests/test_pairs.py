"""Losses and ranks over all pairs, from a ring of simulated devices, against the full matrix in float64 NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mmjax.sharding import MeshConfig, make_mesh
from mmjax.sharding.mesh import AXES
from mmjax.tasks.losses import pairs

SIZE, WIDTH = 16, 5
MESHES = {
    "one device": None,
    "data=8": MeshConfig(data=8),
    "data=4 x fsdp=2": MeshConfig(data=4, fsdp=2),
    "slice=2 x fsdp=2 x tensor=2": MeshConfig(slice=2, data=1, fsdp=2, tensor=2),
}
TOLERANCE = 2e-6
"""Tolerance relative to the largest value, for float32 sums of 16 numbers."""


def make_pairs(kind: str):
    """Features, temperature and bias; valid examples (one device has none); labels; the cotangent."""
    draws = np.random.default_rng(6)
    first, second = (draws.normal(size=(SIZE, WIDTH)) for _ in range(2))
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    valid = np.ones(SIZE, bool)
    valid[[0, 1, 2, 7, 13]] = False
    # Label 3 has four valid examples; labels 4 and 9 have one each, and one invalid.
    labels = np.array([0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 9, 9, 3, 10])
    cotangent = draws.normal(size=SIZE)
    scalars = (7.0, 0.0) if kind == "softmax" else (6.0, -3.0)
    return (first, second, *map(np.float64, scalars)), (valid, labels), cotangent


def naive(kind, first, second, temperature, bias, valid, labels) -> np.ndarray:
    """The losses from their definition, in float64, pair by pair."""
    losses = np.zeros(SIZE)
    logits = temperature * first @ second.T + bias
    indices = np.flatnonzero(valid)
    for i in indices:
        positives = [j for j in indices if labels[j] == labels[i]]
        if kind == "sigmoid":
            losses[i] = sum(np.log1p(np.exp(-(1 if j in positives else -1) * logits[i, j])) for j in indices)
            continue
        for scores in (logits[i], logits[:, i]):
            norm = np.log(sum(np.exp(scores[j]) for j in indices))
            losses[i] += 0.5 * np.mean([norm - scores[j] for j in positives])
    return losses


def differences(function, arguments, step=1e-6):
    """Central differences of a scalar function with respect to each argument."""
    gradients = []
    for number, argument in enumerate(arguments):
        gradient = np.zeros_like(argument)
        for index in np.ndindex(argument.shape):
            values = []
            for sign in (1, -1):
                moved = argument.copy()
                moved[index] += sign * step
                values.append(function(*arguments[:number], moved, *arguments[number + 1 :]))
            gradient[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


@functools.cache
def truth(kind: str):
    moving, fixed, cotangent = make_pairs(kind)
    moving = [np.asarray(x) for x in moving]
    losses = naive(kind, *moving, *fixed)
    return losses, differences(lambda *moving: naive(kind, *moving, *fixed) @ cotangent, moving)


def measured(kind: str, mesh: MeshConfig | None):
    moving, fixed, cotangent = make_pairs(kind)
    moving = [jnp.asarray(x, jnp.float32) for x in moving]

    def weighted(*moving):
        losses = pairs.pair_losses(kind, *moving, *map(jnp.asarray, fixed))
        return losses @ jnp.asarray(cotangent, jnp.float32), losses

    gradients = jax.jit(jax.grad(weighted, argnums=(0, 1, 2, 3), has_aux=True))
    with jax.default_matmul_precision("highest"), jax.set_mesh(make_mesh(mesh or MeshConfig(), devices_of(mesh))):
        gradients, losses = jax.device_get(gradients(*moving))
    return losses, gradients


def devices_of(mesh: MeshConfig | None):
    return jax.devices() if mesh else jax.devices()[:1]


def check(kind: str, mesh: MeshConfig | None) -> None:
    (losses, gradients), (true_losses, true_gradients) = measured(kind, mesh), truth(kind)
    np.testing.assert_allclose(losses, true_losses, rtol=0, atol=TOLERANCE * true_losses.max())
    assert (losses[[0, 1, 2, 7, 13]] == 0).all()
    largest = max(np.abs(x).max() for x in true_gradients)
    for found, expected in zip(gradients, true_gradients, strict=True):
        # A bias shifts all logits of a softmax equally: its gradient is 0 up to rounding.
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(np.abs(expected).max(), 0.1 * largest))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("kind", pairs.LOSSES)
def test_losses_and_gradients_are_those_of_the_definition(kind, mesh):
    check(kind, MESHES[mesh])


@pytest.mark.parametrize("mesh", ["one device", "data=8", "data=4 x fsdp=2"])
@pytest.mark.parametrize("kind", pairs.LOSSES)
def test_small_blocks_give_the_same(kind, mesh, monkeypatch):
    monkeypatch.setattr(pairs, "MAX_BLOCK", 4 * SIZE if mesh == "one device" else 2)
    check(kind, MESHES[mesh])


@pytest.mark.parametrize("mesh", MESHES)
def test_ranks_count_the_negatives_above_the_best_positive(mesh):
    (first, second, *_), (valid, labels), _ = make_pairs("softmax")
    second[4] = second[3]  # a tie between two positives changes nothing
    second[9] = second[8]  # a tie with a negative counts against the model
    config = MESHES[mesh]
    with jax.default_matmul_precision("highest"), jax.set_mesh(make_mesh(config or MeshConfig(), devices_of(config))):
        sides = (jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32))
        found = jax.jit(pairs.retrieval_ranks)(*sides, jnp.asarray(valid), jnp.asarray(labels))
    scores, indices = first @ second.T, np.flatnonzero(valid)
    for counted, matrix in zip(found, (scores, scores.T), strict=True):
        for i in indices:
            best = max(matrix[i, j] for j in indices if labels[j] == labels[i])
            wrong = [matrix[i, j] for j in indices if labels[j] != labels[i]]
            assert counted[i] == sum(score >= best - 1e-9 for score in wrong)


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ({"data": 16, "fsdp": 16}, (("slice", "data"), 16)),
        ({"slice": 8, "data": 16, "fsdp": 16}, (("slice", "data"), 16)),
        # A group of all devices would gather all features on each.
        ({"fsdp": 256}, (AXES, 1)),
        ({"data": 2, "fsdp": 128}, (AXES, 1)),
        ({"data": 256}, (AXES, 1)),
    ],
)
def test_groups_make_rings_short_and_are_not_large(sizes, groups):
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def local(x):
        around, group = pairs._split_axes(AXES)
        found.append((around, jax.lax.axis_size(group) if group else 1))
        return x

    found: list = []
    jax.eval_shape(
        jax.shard_map(local, mesh=mesh, in_specs=jax.P(AXES), out_specs=jax.P(AXES)),
        jax.ShapeDtypeStruct((mesh.size,), jnp.float32),
    )
    assert found[0] == groups


def test_no_device_holds_all_pairs_or_all_features():
    size, width = 512, 16
    config = MeshConfig(data=8)

    def total(first, second):
        valid, labels = jnp.ones(size, bool), jnp.arange(size)
        return pairs.pair_losses("softmax", first, second, jnp.float32(9), jnp.float32(0), valid, labels).sum()

    mesh = make_mesh(config)
    rows = jax.NamedSharding(mesh, jax.P("data"))
    side = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=rows)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(total, argnums=(0, 1)), out_shardings=rows).lower(side, side).compile()
    text = compiled.as_text()
    assert f"[{size // 8},{size // 8}]" in text and "collective-permute" in text
    assert "all-gather" not in text
    for shape in (f"[{size},{size}]", f"[{size // 8},{size}]", f"[{size},{width}]", f"[8,{size // 8},{width}]"):
        assert shape not in text, f"a device holds {shape}"
