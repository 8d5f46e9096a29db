"""Layers in float64 NumPy, from the parameters of a module, to compare its output with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.tokens import Tokens


def randomised(make: Callable[[], nnx.Module]) -> nnx.Module:
    """A module with random parameters: biases of 0 and scales of 1 would hide a missing term."""
    graph, state = nnx.split(nnx.eval_shape(make))
    draws = np.random.default_rng(4)

    def draw(path, leaf):
        values = 0.4 * draws.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path))
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def apply(module: nnx.Module, *inputs: Any) -> Any:
    """Calls a module in float32, compiled as one program, which takes less time than one for each operation."""
    graph, state = nnx.split(module)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda state, inputs: nnx.merge(graph, state)(*inputs))(state, inputs)


def float64(parameter: nnx.Param) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def linear(layer, x: np.ndarray) -> np.ndarray:
    return x @ float64(layer.kernel) + (0 if layer.bias is None else float64(layer.bias))


def norm(layer, x: np.ndarray) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * float64(layer.scale) + float64(layer.bias)


def attention(layer, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Multi-head attention from queries [q, width] to keys [k, width]."""
    parts = [linear(layer.query, queries), linear(layer.key, keys), linear(layer.value, keys)]
    q, k, v = (x.reshape(*x.shape[:-1], layer.heads, -1) for x in parts)
    weights = np.exp(np.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5)
    weights /= weights.sum(-1, keepdims=True)
    return linear(layer.out, np.einsum("hqk,khd->qhd", weights, v).reshape(len(queries), -1))


def gelu(x: np.ndarray) -> np.ndarray:
    """The usual approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def feed_forward(layer, x: np.ndarray) -> np.ndarray:
    return linear(layer.down, gelu(linear(layer.up, x)))


def block(layer, x: np.ndarray) -> np.ndarray:
    """A pre-norm Transformer block on tokens [n, width]."""
    normed = norm(layer.attention_norm, x)
    x = x + attention(layer.attention, normed, normed)
    return x + feed_forward(layer.mlp, norm(layer.mlp_norm, x))


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Sine-cosine embedding of positions [n, axes]: sines, then cosines, of each axis; then zeros."""
    axes = positions.shape[1]
    pairs = width // (2 * axes)
    waves = np.zeros((len(positions), width))
    for axis in range(axes):
        angles = positions[:, axis, None] / 10_000 ** (np.arange(pairs) / pairs)
        waves[:, 2 * pairs * axis :][:, : 2 * pairs] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return waves


def tokens_of(*examples: np.ndarray, present: list[bool] | None = None) -> Tokens:
    """Tokens of examples [n, width], all of which are there by default."""
    values = jnp.asarray(np.stack(examples), jnp.float32)
    flags = jnp.asarray([True] * len(examples) if present is None else present)
    return Tokens.make(values, jnp.broadcast_to(flags[:, None], values.shape[:2]))
