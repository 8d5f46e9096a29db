"""Stacks of layers: rematerialisation gives the same gradients in less memory; parameters are unstacked by layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mmjax.layers import MLP, REMATERIALISATION, Stack, restack_layers, unstack_layers
from mmjax.sharding import MeshConfig, make_mesh
from tests.contracts import Case, Part, assert_close, make_batch

WIDTH, DEPTH = 16, 4


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.mlp = MLP(WIDTH, 8 * WIDTH, rngs=rngs)

    def __call__(self, x, rng, drop):
        return x + jnp.tanh(self.mlp(x))


def made(rematerialise):
    """Function that computes gradients with respect to parameters and input, and its arguments."""
    stack = Stack(Layer, DEPTH, rngs=nnx.Rngs(params=0), rematerialise=rematerialise)
    graph, state = nnx.split(stack)
    parameters, x = nnx.to_pure_dict(state), jax.random.normal(jax.random.key(1), (8, 32, WIDTH))
    return jax.jit(jax.grad(lambda p, x: jnp.square(nnx.merge(graph, p)(x)).sum(), argnums=(0, 1))), (parameters, x)


def gradients(rematerialise, mesh: MeshConfig | None = None):
    """Gradients, and the lowered function."""
    function, arguments = made(rematerialise)
    with jax.set_mesh(make_mesh(mesh or MeshConfig(), None if mesh else jax.devices()[:1])):
        return function(*arguments), function.lower(*arguments)


@functools.cache
def truth():
    return gradients("none")


MIXED = ("full", "full", "none", "dots")


@pytest.mark.parametrize("policy", [*REMATERIALISATION, MIXED], ids=str)
@pytest.mark.parametrize("mesh", [None, MeshConfig(data=4, tensor=2)], ids=["one device", "data=4 x tensor=2"])
def test_each_policy_gives_the_gradients_of_keeping_everything(policy, mesh):
    assert_close(gradients(policy, mesh)[0], truth()[0])


def test_what_is_not_kept_needs_no_memory():
    kept = {
        policy: gradients(policy)[1].compile().memory_analysis().temp_size_in_bytes
        for policy in ("none", "dots", "dots_except_mlp", "full")
    }
    kept["mixed"] = gradients(MIXED)[1].compile().memory_analysis().temp_size_in_bytes
    activation = 8 * 32 * 8 * WIDTH * 4
    assert kept["none"] - kept["full"] > DEPTH * activation
    # One wide and one narrow product per layer.
    assert kept["dots"] - kept["full"] > (DEPTH - 1) * activation
    assert kept["dots"] - kept["dots_except_mlp"] > (DEPTH - 1) * activation
    # Newer compilers rematerialise elementwise operations between products by themselves.
    assert kept["dots"] <= kept["none"] and kept["full"] < kept["mixed"] < kept["none"]


def test_offloaded_products_go_to_the_memory_of_the_host():
    # Inspect the jaxpr: a CPU has a single memory, and its compiler drops the copies.
    texts = []
    for policy in ("offload", "dots"):
        function, arguments = made(policy)
        texts.append(str(jax.make_jaxpr(function)(*arguments)))
    wide = f"f32<host>[8,32,{8 * WIDTH}]"
    assert wide in texts[0] and "<host>" not in texts[1]


def test_each_layer_needs_a_policy():
    with pytest.raises(ValueError, match="rematerialise has 2 entries for 4 layers; give one entry or 4"):
        Stack(Layer, DEPTH, rngs=nnx.Rngs(params=0), rematerialise=("none", "full"))


def test_a_recipe_names_policies_for_all_layers_or_for_each():
    part = Part("encoder", "vit")
    plain = Case(part, depth=3)
    batch = make_batch(plain.specs)
    mixed = Case(part, depth=3, rematerialise=("full", "offload", "none"), parameters=plain.parameters)
    assert_close(mixed.gradients(batch), plain.gradients(batch))


def nested():
    """Parameters with a nested stack, a list of modules and a module outside of stacks."""
    return {
        "encoder": {
            "layers": {
                "kernel": jnp.arange(2 * 3 * 4).reshape(2, 3, 4),
                "inner": {"layers": {"bias": jnp.arange(2 * 5 * 6).reshape(2, 5, 6)}},
            }
        },
        "heads": {"layers": {0: {"kernel": jnp.ones((3, 4))}, 1: {"kernel": jnp.ones((4, 5))}}},
        "norm": {"scale": jnp.ones(4)},
    }


def test_layers_are_unstacked_by_number_and_restacked():
    tree = nested()
    layers = unstack_layers(tree)
    assert set(layers["encoder"]["layers"]) == {0, 1}
    for layer in (0, 1):
        part = layers["encoder"]["layers"][layer]
        assert (part["kernel"] == tree["encoder"]["layers"]["kernel"][layer]).all()
        for index in range(5):
            bias = part["inner"]["layers"][index]["bias"]
            assert (bias == tree["encoder"]["layers"]["inner"]["layers"]["bias"][layer, index]).all()
    assert jax.tree.structure(layers["heads"]) == jax.tree.structure(tree["heads"])
    restacked = restack_layers(layers, tree)
    assert jax.tree.structure(restacked) == jax.tree.structure(tree)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.shape == b.shape and bool((a == b).all()), restacked, tree)))


def test_trees_in_a_state_are_unstacked_like_the_parameters():
    parameters = nested()
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, unstack_layers(parameters))
    optimizer = optax.chain(optax.scale_by_adam(), optax.masked(optax.trace(0.9), mask))
    state = optimizer.init(unstack_layers(parameters))
    stacked = restack_layers(state, parameters)
    assert jax.tree.map(jnp.shape, stacked[0].mu) == jax.tree.map(jnp.shape, parameters)
    assert jax.tree.structure(unstack_layers(stacked, parameters)) == jax.tree.structure(state)
