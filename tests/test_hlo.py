"""Compiled programs as data: trip counts, cycles, sources and memory of instructions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from mmjax.planning.chips import CHIPS
from mmjax.planning.hlo import Array, Module
from mmjax.planning.kernels import CompiledCycles, count_kernel_calls
from mmjax.planning.memory import live_at_peak, read_memory
from mmjax.planning.roofline import instruction_flops
from mmjax.planning.schedule import simulate_step
from tests.compiled import compile_on, execution_counts, pallas_product, topology_mesh

WIDTH = 512


def products(count: int):
    def function(x, w):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, length=count)[0]

    return function


def scan(mesh: Mesh, count: int):
    replicated = ((WIDTH, WIDTH), "bfloat16", ())
    return compile_on(mesh, products(count), replicated, replicated)


def test_cycles_of_a_loop_count_as_often_as_it_runs():
    mesh = topology_mesh("v5e:1x1", data=1)
    cycles = {}
    for count in (4, 12):
        _, module = scan(mesh, count)
        assert sorted(execution_counts(module).values()) == [1, count]
        cycles[count] = simulate_step(module, mesh, CHIPS["TPU v5 lite"]).cycles
        body = max(execution_counts(module), key=lambda name: execution_counts(module)[name])
        once = sum(instruction.cycles for instruction in module.computations[body].instructions)
        outside = sum(instruction.cycles for instruction in module.entry.instructions)
        assert once > 0 and cycles[count] == outside + count * once
    assert cycles[12] > 2.5 * cycles[4]


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite"])
def test_cycles_of_a_large_matmul_give_nearly_the_peak_flops(kind):
    chip = CHIPS[kind]
    mesh, size = topology_mesh(f"{chip.name}:1x1", data=1), 8192
    argument = ((size, size), "bfloat16", ())
    _, module = compile_on(mesh, lambda a, b: a @ b, argument, argument)
    seconds = simulate_step(module, mesh, chip).step_seconds
    assert 0.65 < 2 * size**3 / seconds / chip.peak_flops < 1.0


def count_down(x):
    def condition(carry):
        return carry[0] < 7

    return jax.lax.while_loop(condition, lambda carry: (carry[0] + 1, jnp.sin(carry[1]) * 2), (0, x))[1]


def nested(x):
    def outer(_, x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x) + 1

    return jax.lax.fori_loop(0, 5, outer, x)


@pytest.mark.parametrize("where", ["cpu", "tpu"])
@pytest.mark.parametrize(("function", "runs"), [(count_down, [1, 7]), (nested, [1, 5, 15])])
def test_loops_are_counted_from_their_condition(function, runs, where):
    # A large array, so that XLA does not unroll the loop.
    mesh = Mesh(jax.devices()[:1], ("data",)) if where == "cpu" else topology_mesh("v5e:1x1", data=1)
    _, module = compile_on(mesh, function, ((256, 256), "float32", ()))
    found = sorted(execution_counts(module).values())
    assert found == runs or where == "cpu" and set(runs) <= set(found)


def test_a_loop_that_the_data_ends_has_no_count():
    mesh = Mesh(jax.devices()[:1], ("data",))
    _, module = compile_on(
        mesh, lambda x: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x), ((9,), "float32", ())
    )
    with pytest.raises(ValueError, match="trip count"):
        execution_counts(module)


def test_a_place_in_the_code_is_that_of_the_operation():
    _, module = scan(topology_mesh("v5e:1x1", data=1), 4)
    fusions = [
        instruction
        for name in execution_counts(module)
        for instruction in module.computations[name].instructions
        if "dot_general" in instruction.op_name or "tanh" in instruction.op_name
    ]
    assert fusions and all("test_hlo.py:" in module.location(instruction) for instruction in fusions)


@pytest.mark.parametrize(
    ("layout", "padded"),
    [
        ("1,0", 2 * 130 * 3),
        ("1,0:T(8,128)(2,1)", 2 * 136 * 128),
        ("0,1:T(8,128)(2,1)", 2 * 8 * 256),
        ("1,0:T(1024)", 2 * 130 * 1024),
    ],
)
def test_arrays_in_tiles_are_padded(layout, padded):
    array = Array("bf16", (130, 3), layout)
    assert array.bytes == 2 * 130 * 3 and array.padded_bytes == padded


def test_memory_is_that_of_the_compiler():
    """Argument bytes are exact. Live-range analysis lists the temporaries, and its sum is close to the compiler's."""
    mesh = topology_mesh("v5e:1x1", data=1)
    depth, rows, width = 6, 4096, 1024

    def loss(w, x):
        return jnp.square(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]).mean()

    compiled, module = compile_on(
        mesh, jax.grad(loss), ((depth, width, width), "float32", ()), ((rows, width), "float32", ())
    )
    analysis = compiled.memory_analysis()
    memory = read_memory(module, analysis, 2**34)
    assert memory.parameters + memory.optimizer + memory.batch + memory.other == analysis.argument_size_in_bytes
    everything = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    # The float32 output of each layer is kept; some compilers also keep the product.
    kept = analysis.argument_size_in_bytes + 4 * depth * rows * width
    assert kept <= memory.peak <= everything + analysis.generated_code_size_in_bytes
    found = sum(buffer.bytes for buffer in live_at_peak(module))
    assert 0.8 < found / analysis.temp_size_in_bytes < 1.35
    # Residuals of the forward pass: the output of each layer.
    largest = memory.largest[0]
    assert largest.bytes >= depth * rows * width * 2 and largest.what == "activation"
    assert memory.activations >= depth * rows * width * 2


@pytest.mark.parametrize(
    ("compiled", "source"),
    [
        # Cycles of a call: unknown, fewer than the 15 us of HBM traffic, and more.
        (CompiledCycles(0), "roofline"),
        (CompiledCycles(10_000), "bandwidth"),
        (CompiledCycles(50_000), "static"),
    ],
)
def test_a_kernel_takes_its_static_cycles_or_the_time_of_its_bytes(compiled, source):
    size, parts = 1024, 4
    product = pallas_product(size, parts)
    mesh, chip = topology_mesh("v5e:1x1", data=1), CHIPS["TPU v5 lite"]
    argument = ((size, size), "bfloat16", ())
    _, module = compile_on(mesh, product, argument, argument)
    shape = jax.ShapeDtypeStruct((size, size), "bfloat16")
    calls = count_kernel_calls(jax.make_jaxpr(product)(shape, shape).jaxpr)
    assert list(calls.values()) == [1] and [kernel.flops for kernel in calls] == [2 * size**3]
    assert [kernel.trips for kernel in calls] == [(parts,)]
    timing = simulate_step(module, mesh, chip, list(calls), lambda kernel: compiled)
    bytes_moved = 2 * 2 * size**2 + 4 * size**2
    seconds = {
        "roofline": max(2 * size**3 / chip.peak_flops, bytes_moved / chip.memory_bandwidth),
        "bandwidth": bytes_moved / chip.memory_bandwidth,
        "static": compiled.cycles / chip.clock_hz,
    }
    assert timing.kernel_seconds == pytest.approx(seconds[source])
    (totals,) = timing.kernels.values()
    assert (totals.name, totals.executions, totals.cost.source) == ("product", 1, source)
    # Without the traced kernel, only the declared and visible costs are known.
    (unknown,) = simulate_step(module, mesh, chip).kernels.values()
    assert unknown.cost.source == "roofline"


def test_where_there_are_no_cycles_a_product_takes_what_its_flops_or_its_bytes_take():
    size, count = 512, 6
    mesh = Mesh(jax.devices()[:1], ("data",))
    argument = ((size, size), "float32", ())
    _, module = compile_on(mesh, products(count), argument, argument)
    flops = sum(
        runs * instruction_flops(module, instruction)
        for name, runs in execution_counts(module).items()
        for instruction in module.computations[name].instructions
    )
    assert flops == count * 2 * size**3
    slow = dataclasses.replace(CHIPS["NVIDIA H100 80GB HBM3"], peak_flops=1e6)
    timing = simulate_step(module, mesh, slow)
    assert timing.cycles == 0 and timing.step_seconds == pytest.approx(flops / 1e6, rel=1e-3)


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="not a compiled HLO module"):
        Module("hello")
