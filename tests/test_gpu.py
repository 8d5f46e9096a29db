"""Plans for GPUs that this machine lacks. `pytest -m cuda` compiles for them; it needs the extra `cuda` and no GPU."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.errors import UserError
from mmjax.planning import matmul_flops, topology_devices
from mmjax.planning.chips import CHIPS
from mmjax.planning.collectives import collectives_of
from mmjax.planning.hlo import Module
from mmjax.planning.roofline import instruction_flops
from mmjax.sharding import MeshConfig, make_mesh
from tests.compiled import execution_counts

H100 = CHIPS["NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", "'h100' has no valid number of GPUs; write it like h100:8, or h100:4x8 for 4 nodes of 8"),
        ("h200:2x2x8", "'h200:2x2x8' has no valid number of GPUs"),
        ("h100:0", "'h100:0' has no valid number of GPUs"),
        ("h100:32", "'h100:32' has 32 GPUs in a node, nodes have at most 8; write it like h100:4x8"),
    ],
)
def test_a_cluster_that_does_not_exist_is_refused_in_one_line(name, message):
    with pytest.raises(UserError) as error:
        topology_devices(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_the_plugin_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[cuda\]"):
        topology_devices("h100:8")


ATTENTION = """HloModule step, is_scheduled=true

ENTRY %main (q: bf16[2,16,4,64], k: bf16[2,32,4,64]) -> bf16[2,4,16,64] {
  %q = bf16[2,16,4,64]{3,2,1,0} parameter(0)
  %k = bf16[2,32,4,64]{3,2,1,0} parameter(1)
  ROOT %attend = (bf16[2,4,16,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="TARGET", \
backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": \
["2", "4", "16", "32"]}}}
}
"""


@pytest.mark.parametrize(
    ("target", "products"), [("__cudnn$fmhaScaleBiasSoftmax", 2), ("__cudnn$fmhaScaleBiasSoftmaxBackward", 5)]
)
def test_the_attention_of_cudnn_has_flops(target, products):
    module = Module(ATTENTION.replace("TARGET", target))
    assert instruction_flops(module, module.instructions["attend"]) == products * 2 * (2 * 4 * 16 * 32) * 64


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "nodes", "count", "hosts"), [("h100:8", 1, 8, 1), ("h200:4x8", 1, 32, 4), ("h100:2", 2, 4, 2)]
)
def test_a_cluster_has_its_gpus(name, nodes, count, hosts):
    devices = topology_devices(name, nodes)
    assert len(devices) == count and len({device.process_index for device in devices}) == hosts
    assert {device.platform for device in devices} == {"gpu"}


@pytest.mark.cuda
def test_collectives_between_gpus_have_the_bytes_of_what_is_sharded():
    """Parameters [n, n] split over the node and gathered for a product; gradients are summed over nodes too."""
    size, count, batch = 2048, 3, 4096
    mesh = make_mesh(MeshConfig(data=2, fsdp=8), topology_devices("h100:2x8"))
    split, rows = (NamedSharding(mesh, spec) for spec in (P("fsdp"), P(("data", "fsdp"))))

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return jnp.sum(x.astype(jnp.float32) ** 2)

    weights = [jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=split)] * count
    x = jax.ShapeDtypeStruct((batch, size), jnp.bfloat16, sharding=rows)
    step = jax.jit(jax.grad(loss), out_shardings=[split] * count)
    module = Module(step.lower(weights, x).compile().as_text())
    found = [each for name in execution_counts(module) for line in module.computations[name].instructions
             for each in collectives_of(module, line, mesh, H100)]  # fmt: skip
    gathered = sum(each.bytes for each in found if each.kind == "all-gather")
    scattered = sum(each.bytes for each in found if each.kind == "reduce-scatter")
    assert gathered in (count * 2 * size**2, (2 * count - 1) * 2 * size**2)
    assert scattered in (count * 2 * size**2, count * 4 * size**2)
    slow = [each for each in found if "data" in each.axes]
    assert slow and all(each.seconds > each.bytes / 8 / H100.network_bandwidth / 2 for each in slow)


@pytest.mark.cuda
def test_attention_on_a_gpu_is_counted_and_is_not_computed_again():
    from mmjax.layers import stack
    from mmjax.layers.attention import kernels

    device = topology_devices("h100:1")[0]
    shape = jax.ShapeDtypeStruct((4, 256, 8, 64), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((4, 256), jnp.int32)

    def attend(query, key, value, segments):
        return kernels.cudnn_attention(query, key, value, segments, segments)

    assert matmul_flops(attend, shape, shape, shape, segments) == 4 * (4 * 8 * 256 * 256) * 64

    def loss(*arrays):
        again = stack.rematerialised(lambda *arrays: attend(*arrays) ** 2, "dots", looped=False)
        return jnp.sum(again(*arrays).astype(jnp.float32))

    sharding = jax.sharding.SingleDeviceSharding(device)
    step = jax.jit(jax.value_and_grad(loss), in_shardings=sharding)
    text = step.lower(shape, shape, shape, segments).compile().as_text()
    assert text.count('custom_call_target="__cudnn$fmhaScaleBiasSoftmax"') == 1
    assert text.count('custom_call_target="__cudnn$fmhaScaleBiasSoftmaxBackward"') == 1
