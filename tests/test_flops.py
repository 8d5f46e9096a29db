"""FLOP counts against closed forms, through every transformation that can wrap a product."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from mmjax.layers import Transformer, TransformerConfig
from mmjax.planning import matmul_flops, peak_flops, training_flops
from mmjax.planning.kernels import count_kernel_calls
from mmjax.tokens import Tokens

X, W = jax.ShapeDtypeStruct((8, 4), "float32"), jax.ShapeDtypeStruct((4, 4), "float32")
ONE = 2 * 8 * 4 * 4


@functools.partial(jax.custom_vjp)
def custom(x, w):
    return x @ w


custom.defvjp(lambda x, w: (custom(x, w), (x, w)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x, w: x + w.sum(), 0),
        (lambda x, w: x @ w, 1),
        (lambda x, w: jnp.einsum("ij,kj->ik", x, w), 1),
        (jax.jit(lambda x, w: x @ w), 1),
        (jax.checkpoint(lambda x, w: jnp.tanh(x @ w)), 1),
        (custom, 1),
        (lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=5), 5),
        (lambda x, w: jax.lax.scan(lambda c, _: (jax.lax.fori_loop(0, 3, lambda i, c: c @ w, c), 0), x, length=5), 15),
        (lambda x, w: jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x), 2),
        (lambda x, w: jax.vmap(lambda row: row @ w)(x), 1),
        (lambda x, w: jax.grad(lambda w: (x @ w).sum())(w), 2),
    ],
)
def test_matmuls_are_counted_inside_all_transformations(function, products):
    assert matmul_flops(function, X, W) == products * ONE


def test_each_device_of_a_shard_map_counts():
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    product = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
    assert matmul_flops(product, X, W) == ONE


def test_a_loop_with_a_data_dependent_trip_count_cannot_be_counted():
    def halve(x, w):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="trip count is unknown"):
        matmul_flops(halve, X, W)
    assert matmul_flops(lambda x, w: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x @ w), X, W) == ONE


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_product_at_each_place(groups):
    x, kernel = jnp.zeros((3, 16, 16, 4)), jnp.zeros((3, 5, 4 // groups, 6))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    assert matmul_flops(convolve, x, kernel) == 2 * (3 * 8 * 8 * 6) * (3 * 5 * 4 // groups)


@pytest.mark.parametrize("options", [{}, {"scan": False}, {"rematerialise": "full"}])
@pytest.mark.parametrize("depth", [1, 12])
def test_a_transformer_has_the_flops_of_its_closed_form_with_no_credit_for_recomputation(depth, options):
    batch, tokens, width, hidden = 2, 10, 16, 64
    config = TransformerConfig(width=width, depth=depth, heads=4, hidden=hidden, **options)
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))

    def forward(state, values):
        return nnx.merge(graph, state)(Tokens.make(values, jnp.ones(values.shape[:2], bool)), None).values.sum()

    # Four projections, two MLP matrices, attention logits and weighted values.
    layer = 2 * batch * tokens * (4 * width**2 + 2 * width * hidden) + 2 * 2 * batch * tokens**2 * width
    values = jax.ShapeDtypeStruct((batch, tokens, width), "float32")
    assert training_flops(forward, state, values) == 3 * depth * layer


def test_peaks_are_those_of_the_device_and_unknown_ones_are_none():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert [peak_flops(kind) for kind in ("TPU v5 lite", "TPU v5", "TPU v6 lite")] == [197e12, 459e12, 918e12]
    assert peak_flops("cpu") is None and peak_flops("NVIDIA H100 PCIe") is None


def test_a_kernel_counts_once_for_each_place_of_its_grid():
    from jax.experimental import pallas

    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    product = pallas.pallas_call(
        kernel,
        out_shape=X,
        grid=(4,),
        in_specs=[pallas.BlockSpec((2, 4), lambda i: (i, 0)), pallas.BlockSpec((4, 4), lambda i: (0, 0))],
        out_specs=pallas.BlockSpec((2, 4), lambda i: (i, 0)),
        interpret=True,
    )
    assert matmul_flops(product, X, W) == ONE


def test_padded_kernels_count_declared_flops_and_cost_actual_ones():
    """A head dimension of 64 is padded to 128 lanes: the kernel computes on 128 but declares 64."""
    from mmjax.layers.attention.short import short_attention

    batch, tokens, heads, depth = 2, 16, 4, 64
    array = jax.ShapeDtypeStruct((batch, tokens, heads, depth), jnp.float32)
    segments = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)
    arguments = (array, array, array, segments, segments)
    needed = 2 * 2 * batch * heads * tokens * tokens * depth
    assert matmul_flops(short_attention, *arguments) == needed
    (kernel,) = count_kernel_calls(jax.make_jaxpr(short_attention)(*arguments).jaxpr)
    assert kernel.flops == 2 * needed
