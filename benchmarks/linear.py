"""Compares the time of an MLP gradient with the custom derivative of `mmjax.layers.linear.project` and JAX's own.

    python benchmarks/linear.py --width=128 --rows=2048

Both alternate in one process, on JAX's default device. Checks first that the gradients agree. Prints the median
milliseconds of each, and their ratio with its range.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mmjax.layers.linear import project

WIDTH = flags.DEFINE_integer("width", 128, "width of the MLP; the hidden width is four times as large", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 2048, "tokens per batch", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 50, "timed calls of each", lower_bound=3)


def main(_) -> None:
    width, rows = WIDTH.value, ROWS.value
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows // 32, 32, width))
    kernels = {
        "up": jax.random.normal(keys[1], (width, 4 * width)) * width**-0.5,
        "down": jax.random.normal(keys[2], (4 * width, width)) * (4 * width) ** -0.5,
    }

    def gradient_with(product):
        def loss(kernels, x):
            y = product(jax.nn.gelu(product(x, kernels["up"])), kernels["down"])
            return jnp.square(y).mean()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))

    contenders = {"project": gradient_with(project), "derived": gradient_with(lambda x, kernel: x @ kernel)}
    results = {name: jax.block_until_ready(function(kernels, x)) for name, function in contenders.items()}
    for found, expected in zip(jax.tree.leaves(results["project"]), jax.tree.leaves(results["derived"]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(REPEATS.value):
        for name, function in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(function(kernels, x))
            seconds[name].append(time.perf_counter() - start)
    print(f"device: {jax.devices()[0].device_kind}, JAX {jax.__version__}; {rows} rows, width {width}")
    for name, times in seconds.items():
        print(f"{name:8s} {statistics.median(times) * 1e3:8.2f} ms")
    ratios = sorted(slow / fast for fast, slow in zip(seconds["project"], seconds["derived"], strict=True))
    low, middle, high = (ratios[int(share * (len(ratios) - 1))] for share in (0.1, 0.5, 0.9))
    print(f"derived / project: {middle:.2f} (10th to 90th percentile {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    app.run(main)
