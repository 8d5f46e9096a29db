"""Costs of Pallas kernels: static cycles of the compiler, their table, and reports of unknown costs."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.attention.short import short_attention
from mmjax.planning import kernel_cycles
from mmjax.planning.chips import CHIPS
from mmjax.planning.kernel_compiler import executed_bundles
from mmjax.planning.kernel_cycles import COMMITTED, KernelCycles, compile_in_child
from mmjax.planning.kernels import CompiledCycles, Kernel, KernelCost, count_kernel_calls
from mmjax.planning.plan import KernelSummary
from mmjax.planning.report import kernel_line
from mmjax.sharding import MeshConfig, make_mesh
from tests.compiled import product_kernel


def attention_kernels(tokens: int, batch: int = 32, heads: int = 16, depth: int = 64) -> list[Kernel]:
    """Forward and backward kernel of attention over bfloat16 tokens."""
    array = jax.ShapeDtypeStruct((batch, tokens, heads, depth), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)

    def forward_and_backward(query, key, value, segments):
        mixed, vjp = jax.vjp(lambda *x: short_attention(*x, segments, segments), query, key, value)
        return vjp(mixed)

    # Traced for a mesh, like a train step.
    with jax.set_mesh(make_mesh(MeshConfig(data=-1))) if jax.sharding.get_abstract_mesh().empty else nullcontext():
        jaxpr = jax.make_jaxpr(forward_and_backward)(array, array, array, segments).jaxpr
    return list(count_kernel_calls(jaxpr))


@pytest.mark.parametrize(
    ("tokens", "microseconds", "bundles"), [(256, (189, 448), (246e3, 576e3)), (64, (43, 230), (49e3, 160e3))]
)
def test_the_table_has_the_attention_of_siglip_l16_on_v5e(tokens, microseconds, bundles):
    """Values from the compiler's own static profile and bundle listing, with each kernel compiled alone."""
    if not json.loads(COMMITTED.read_text()).get(kernel_cycles_version()):
        pytest.skip("no table for this libtpu")
    chip, table = CHIPS["TPU v5 lite"], KernelCycles(kernel_cycles_version(), COMMITTED)
    kernels = attention_kernels(tokens)
    assert [kernel.name for kernel in kernels] == ["short_attention", "short_attention_gradient"]
    for kernel, expected, executed in zip(kernels, microseconds, bundles, strict=True):
        found = table.find("TPU v5 lite", kernel)
        assert found is not None, kernel.key
        assert 1e6 * found.cycles / chip.clock_hz == pytest.approx(expected, rel=0.02)
        assert found.bundles == pytest.approx(executed, rel=0.01)


def kernel_cycles_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("libtpu")


LISTING = """
= control target key start
LH: loop header
= control target key end
     0   :  { %s1_s0 = inlined_call_operand.hbm [shape: bf16[8,8], index: 0, kind: input, shape index: {}]  }
   0x1   :  { %2 = vsyncpa [#allocation3], 0 }
   0x2 LB: > { %3 = sst [smem:[#allocation4]] %s1_s0 }
   0x3   : > { %4 = vst [vmem:[#allocation5]] %v1_v0 }
   0x4 LB: >> { %5 = vmatmul.mubr.bf16.gmra.mxu0 %v2_v1 }
   0x5 PF: >> { %6 = vpop.f32.mrf.mxu0 }
   0x6   : >> { %7 = vst [vmem:[#allocation6]] %v3_v2 }
   0x7   : > { %8 = sbr.rel (!%p4_p5) target bundleno = 2 (0x2), region = 8 }
   0x8   :  { %9 = vsyncpa [#allocation7], 1 }
"""


@pytest.mark.parametrize(
    ("trips", "bundles"), [((8, 4), 8 * 3 + 8 * 4 * 3), ((8,), 0), ((), 0), ((2, 3, 5), 2 * 3 + 2 * 3 * 3)]
)
def test_bundles_count_as_often_as_their_loops_run(trips, bundles):
    assert executed_bundles(LISTING, trips) == bundles


def test_a_listing_without_loops_has_no_count():
    assert executed_bundles("   0x1   :  { %2 = vsyncpa [#allocation3], 0 }\n", (4,)) == 0


def test_a_product_compiled_in_a_child_takes_no_less_than_the_matrix_units_need():
    """The v5e MXUs perform 4 x 128 x 128 multiplications a cycle."""
    kernel = product_kernel()
    (found,) = compile_in_child("v5e:2x2", [kernel])
    ideal = 512**3 / (4 * 128**2)
    assert found is not None and ideal <= found.cycles < 4 * ideal
    assert 0 < found.bundles <= found.cycles


def test_a_kernel_that_ends_the_compiler_is_unknown_and_the_next_is_compiled(monkeypatch):
    kernel = product_kernel()
    request = kernel_cycles._request(kernel)
    broken = {**request, "backend_config": "no kernel"}
    monkeypatch.setattr(kernel_cycles, "_request", {"broken": broken, "product": request}.get)
    monkeypatch.setattr(kernel_cycles, "_run", fake_run)
    assert list(compile_in_child("v5e:2x2", ["broken", "product"])) == [None, CompiledCycles(7, 5)]


def fake_run(requests, stop):
    for request in requests:
        if request["backend_config"] == "no kernel":
            return
        yield CompiledCycles(7, 5)


def test_code_shapes_and_name_identify_a_kernel():
    kernel = product_kernel()
    assert product_kernel().key == kernel.key
    others = [
        product_kernel(size=256),
        product_kernel(parts=2),
        product_kernel(name="other"),
        product_kernel(code=jnp.tanh),
    ]
    assert len({kernel.key, *(other.key for other in others)}) == 5


def test_a_kernel_is_the_same_on_every_mesh():
    keys = []
    for sizes in ((8, 1), (2, 4)):
        mesh = jax.sharding.Mesh(
            np.array(jax.devices()).reshape(sizes), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
        )
        with jax.set_mesh(mesh):
            keys.append([kernel.key for kernel in attention_kernels(8, batch=8, heads=2)])
    assert keys[0] == keys[1]


def test_a_kernel_is_compiled_once_for_each_device_and_compiler(tmp_path):
    kernel, broken = product_kernel(), product_kernel(name="broken")
    compiled, said = [], []

    def compile(topology, kernels, stop):
        for kernel in kernels:
            compiled.append((topology, kernel.name))
            yield None if kernel.name == "broken" else CompiledCycles(70, 50)

    table = KernelCycles("1.0", tmp_path / "cycles.json", compile)
    for _ in range(2):
        table.compile_missing("TPU v5 lite", "v5e:2x2", [kernel, broken], said.append)
    assert compiled == [("v5e:2x2", "product"), ("v5e:2x2", "broken")] and len(said) == 1
    assert table.find("TPU v5 lite", kernel) == CompiledCycles(70, 50)
    # Treat a failed compilation as unknown; the next process tries again.
    assert table.find("TPU v5 lite", broken) == CompiledCycles(0, 0)
    later = KernelCycles("1.0", tmp_path / "cycles.json", compile)
    assert later.find("TPU v5 lite", kernel) == CompiledCycles(70, 50) and later.find("TPU v5 lite", broken) is None
    assert later.find("TPU v6 lite", kernel) is None
    assert KernelCycles("1.1", tmp_path / "cycles.json", compile).find("TPU v5 lite", kernel) is None


def test_kernels_compile_alongside_the_step_and_are_waited_for(tmp_path):
    stepping = threading.Event()

    def compile(topology, kernels, stop):
        assert stepping.wait(60)
        yield CompiledCycles(70, 50)

    table, kernel = KernelCycles("1.0", tmp_path / "cycles.json", compile), product_kernel()
    with table.compile_alongside("TPU v5 lite", "v5e:2x2", [kernel], lambda message: None):
        stepping.set()
    assert table.find("TPU v5 lite", kernel) == CompiledCycles(70, 50)


def test_kernels_of_a_step_that_fails_to_compile_are_abandoned(tmp_path, monkeypatch):
    """The child that compiles them would take a minute, beside the search for a change that fits."""
    started, children = threading.Event(), []
    popen = subprocess.Popen

    def start(command, **options):
        children.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        started.set()
        return children[0]

    monkeypatch.setattr(kernel_cycles.subprocess, "Popen", start)
    monkeypatch.setattr(kernel_cycles, "_request", lambda kernel: {})
    table, kernels = KernelCycles("1.0", tmp_path / "cycles.json"), [product_kernel(), product_kernel(name="other")]
    with (
        pytest.raises(MemoryError),
        table.compile_alongside("TPU v5 lite", "v5e:2x2", kernels, lambda message: None),
    ):
        assert started.wait(60)
        raise MemoryError
    assert [child.wait() for child in children] == [-signal.SIGKILL]
    # Not a failure of the kernels: a later plan compiles them.
    assert all(table.find("TPU v5 lite", kernel) is None for kernel in kernels)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"1.0": {}}'])
def test_a_damaged_table_is_no_table(tmp_path, text):
    path = tmp_path / "cycles.json"
    path.write_text(text)
    table = KernelCycles("1.0", path, lambda topology, kernels, stop: [CompiledCycles(3, 2)])
    table.compile_missing("TPU v5 lite", "v5e:2x2", [product_kernel()], lambda message: None)
    assert table.find("TPU v5 lite", product_kernel()) == CompiledCycles(3, 2)


@pytest.mark.parametrize(
    ("cost", "seconds", "source"),
    [
        (KernelCost(3.0, 2.0), 3.0, "roofline"),
        (KernelCost(1.0, 2.0), 2.0, "roofline"),
        (KernelCost(3.0, 2.0, 5.0), 5.0, "static"),
        (KernelCost(1.0, 2.0, 1.5), 2.0, "bandwidth"),
    ],
)
def test_the_cost_of_a_kernel(cost, seconds, source):
    assert (cost.seconds, cost.source) == (seconds, source)


def test_each_kernel_is_printed_with_its_source():
    kernel = KernelSummary(
        "attention", "f32[8,2], f32[8,2], s32[8] -> f32[8,2]", 24, 230e-6, "static", 230e-6, 107e-6, 36e-6
    )
    line = kernel_line(kernel)
    assert "24 x 230.0 us (static, roofline 36.0 us, executed bundles 107.0 us: uncertain)" in line
    assert line.endswith("attention(2 x f32[8,2], s32[8])")
    certain = dataclasses.replace(kernel, bundle_seconds=200e-6)
    assert "uncertain" not in kernel_line(certain)
    unknown = dataclasses.replace(kernel, source="roofline", static_seconds=None, bundle_seconds=None)
    assert "no static estimate" in kernel_line(unknown)
