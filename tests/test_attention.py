"""Sequence-parallel attention and each attention kernel, with masks and segments, against float64 NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers import attend
from mmjax.layers.attention import Attention, kernels, sequence
from mmjax.sharding import MeshConfig, make_mesh, use_mesh_config
from tests import attention_truth

TOKENS, HEADS, DEPTH = 16, 4, 6

MESHES = {
    "sequence=8": MeshConfig(data=1, sequence=8),
    "sequence=4 x tensor=2": MeshConfig(data=1, sequence=4, tensor=2),
    "slice=2 x fsdp=2 x sequence=2": MeshConfig(slice=2, data=1, fsdp=2, sequence=2),
    "sequence=4 x data=2, all to all": MeshConfig(data=2, sequence=4, sequence_attention="all_to_all"),
    "sequence=2 x tensor=2 x data=2, all to all": MeshConfig(
        data=2, sequence=2, tensor=2, sequence_attention="all_to_all"
    ),
}


def check(compute, tokens: int = TOKENS, keys: int | None = None) -> None:
    attention_truth.check(compute, attention_truth.Shape(tokens, keys or tokens, HEADS, DEPTH))


def check_on(config: MeshConfig, keys: int | None = None) -> None:
    with jax.set_mesh(make_mesh(config)), use_mesh_config(config):
        check(attend, keys=keys)


def test_attention_on_one_device_is_that_of_the_definition():
    check(attend)


@pytest.mark.parametrize("mesh", MESHES)
def test_attention_over_split_tokens_is_that_of_the_definition(mesh):
    check_on(MESHES[mesh])


def test_queries_read_another_number_of_split_keys():
    check_on(MESHES["sequence=4 x tensor=2"], keys=24)


def test_queries_that_do_not_divide_read_split_keys():
    with jax.set_mesh(make_mesh(MESHES["sequence=8"])), use_mesh_config(MESHES["sequence=8"]):
        check(attend, tokens=3, keys=16)


def test_small_blocks_of_logits_give_the_same(monkeypatch):
    monkeypatch.setattr(sequence, "MAX_LOGITS", 64)
    check_on(MESHES["sequence=4 x tensor=2"])


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
def test_no_device_holds_the_logits_of_all_tokens(kind):
    tokens, config = 64, MeshConfig(data=1, sequence=8, sequence_attention=kind)
    split = jax.P(None, "sequence")
    array = jax.ShapeDtypeStruct((2, tokens, 8, DEPTH), jnp.float32)
    segments = jax.ShapeDtypeStruct((2, tokens), jnp.int32)
    mesh = make_mesh(config)
    with jax.set_mesh(mesh), use_mesh_config(config):
        gradient = jax.grad(lambda *arrays: attend(*arrays).sum(), argnums=(0, 1, 2))
        step = jax.jit(gradient, in_shardings=split, out_shardings=split)
        text = step.lower(*(array,) * 3, *(segments,) * 2).compile().as_text()
    share = tokens // 8
    assert "all-gather" not in text or kind == "all_to_all"
    assert f"[2,8,{tokens},{tokens}]" not in text, "one array holds the logits of all heads and tokens"
    if kind == "ring":
        assert f"[2,8,{share},{share}]" in text and "collective-permute" in text
        assert f"[2,{tokens},8,{DEPTH}]" not in text, "a device holds the keys of all tokens"
    else:
        assert f"[2,1,{tokens},{tokens}]" in text and "all-to-all" in text


def test_heads_that_do_not_divide_use_a_ring_with_a_log_message(caplog):
    kernels.log_once.cache_clear()
    check_on(MeshConfig(data=1, sequence=8, sequence_attention="all_to_all"))
    assert "ring attention, not all_to_all: 8 does not divide the 4 heads per device" in caplog.text


# Kernels.


def like_cudnn(query, key, value, *, mask, implementation):
    """JAX's attention with the fault of cuDNN's: NaN gradients for a query whose mask row is all False."""
    assert implementation == "cudnn"
    # Measured on an H200; the forward value is correct.
    empty = ~mask.any(axis=-1).swapaxes(1, 2)[..., None]
    poison = jax.custom_vjp(lambda query: query)
    poison.defvjp(lambda query: (query, None), lambda _, cotangent: (jnp.where(empty, jnp.nan, cotangent),))
    return DOT_PRODUCT_ATTENTION(poison(query), key, value, mask=mask, implementation="xla")


DOT_PRODUCT_ATTENTION = jax.nn.dot_product_attention


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", attention_truth.SHAPES)
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_every_kernel_computes_the_definition(monkeypatch, name, shape, dtype):
    monkeypatch.setattr(jax.nn, "dot_product_attention", like_cudnn)
    kernel = kernels.KERNELS[name]
    # Pallas kernels for TPUs run in interpret mode.
    compute = functools.partial(kernel.compute, interpret=True) if kernel.platform == "tpu" else kernel.compute
    attention_truth.check(compute, attention_truth.SHAPES[shape], dtype)


@pytest.mark.parametrize("heads, depth", [(4, 64), (3, 72), (5, 40), (2, 128), (1, 256), (3, 5)])
def test_heads_that_share_registers_do_not_touch_each_other(heads, depth):
    draws = jax.random.split(jax.random.key(depth), 4)
    query, key, value, slope = (
        jax.random.normal(draw, (4, tokens, heads, depth)) for draw, tokens in zip(draws, (9, 12, 12, 9), strict=True)
    )
    asking, asked = jnp.arange(9) % 3 * jnp.ones((4, 1), int), jnp.arange(12) % 2 * jnp.ones((4, 1), int)

    def gradients(compute):
        mixed, back = jax.vjp(lambda *arrays: compute(*arrays, asking, asked), query, key, value)
        return mixed, *back(slope)

    found = gradients(functools.partial(kernels.short_attention, interpret=True))
    for mine, truth in zip(found, gradients(kernels.xla_attention), strict=True):
        np.testing.assert_allclose(mine, truth, atol=2e-5)
    # Queries of the third segment have no key.
    assert not np.any(found[0][:, 2::3]) and not np.any(found[1][:, 2::3])


def array(tokens=256, depth=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((2, tokens, 4, depth), dtype)


@pytest.mark.parametrize(
    "wish, platform, query, expected, reason",
    [
        ("auto", "cpu", array(), "xla", ""),
        ("auto", "tpu", array(), "short", ""),
        ("auto", "tpu", array(tokens=50), "short", ""),
        ("auto", "tpu", array(tokens=1024), "splash", ""),
        ("short", "tpu", array(tokens=1024), "xla", "all heads of an example need 31 MiB of VMEM, more than 16 MiB"),
        ("auto", "gpu", array(), "cudnn", ""),
        ("xla", "tpu", array(), "xla", ""),
        ("auto", "tpu", array(tokens=1), "xla", "sequence length 1 is below the tile size 128"),
        ("auto", "gpu", array(dtype=jnp.float32), "xla", "needs bfloat16 or float16, not float32"),
        ("auto", "gpu", array(depth=60), "xla", "head depth 60"),
        ("auto", "gpu", array(tokens=197), "xla", "needs even lengths, not 197 queries and 197 keys"),
        ("splash", "cpu", array(), "xla", "needs a tpu, not a cpu"),
    ],
)
def test_the_devices_determine_the_kernel_and_the_log_gives_the_reason(caplog, wish, platform, query, expected, reason):
    kernels.log_once.cache_clear()
    assert kernels.choose_kernel(wish, platform, query, query) == expected
    assert reason in caplog.text and bool(reason) == bool(caplog.text)


def test_a_layer_logs_nothing_on_a_cpu(caplog):
    from flax import nnx

    from mmjax.tokens import Tokens

    layer = Attention(8, 2, rngs=nnx.Rngs(0))
    tokens = Tokens.make(jnp.ones((2, 200, 8)), jnp.ones((2, 200), bool))
    assert layer(tokens, tokens).shape == (2, 200, 8)
    assert not caplog.text
