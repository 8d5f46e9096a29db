"""Linear layers and embedding tables with float32 parameters; they compute in the dtype of their input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mmjax.sharding import parameter

PRODUCT = "product"
"""Checkpoint name of values worth saving under rematerialisation: matmul outputs and small reductions (norm means).

JAX's own policies do not recognise the matmuls inside `project`.
"""

WIDE_PRODUCT = "wide product"
"""Checkpoint name of matmul outputs that are wider than their inputs, the most expensive ones to save."""


@jax.custom_vjp
def project(x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "... outputs"]:
    """`x @ kernel`, with a kernel gradient that needs no transpose.

    JAX's own derivative computes (dy^T x)^T, for which XLA on CPUs copies arrays: the gradient of an MLP of width 128
    takes twice as long (`benchmarks/linear.py`). This one computes x^T dy directly.
    """
    return (_flat(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _project_forward(x, kernel):
    return project(x, kernel), (x, kernel)


def _project_backward(saved, dy):
    x, kernel = saved
    flat_dy = _flat(dy)
    dx = jax.lax.dot_general(flat_dy, kernel, (((1,), (1,)), ((), ())))
    return dx.reshape(x.shape), jax.lax.dot_general(_flat(x), flat_dy, (((0,), (0,)), ((), ())))


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def add_bias(y: Float[Array, "... outputs"], bias: Float[Array, " outputs"]) -> Float[Array, "... outputs"]:
    """`y + bias` in the dtype of `y`; the bias gradient is accumulated in float32."""
    return y + bias.astype(y.dtype)


def _add_backward(_, dy):
    # Sum over tokens as a matmul with 8 rows of ones (the rows of a TPU register): the matrix unit has spare capacity,
    # whereas a separate reduction would read `dy` from memory once more.
    ones = jnp.ones((8, dy.size // dy.shape[-1]), dy.dtype)
    over_tokens = (((1,), (0,)), ((), ()))
    highest = jax.lax.Precision.HIGHEST
    sums = jax.lax.dot_general(ones, _flat(dy), over_tokens, precision=highest, preferred_element_type=jnp.float32)
    # The barrier prevents XLA for TPUs from fusing the sum over devices, the row slice and the `fsdp` shard slice. That
    # fusion fails for wide biases if only `fsdp` splits the batch.
    return dy, jax.lax.optimization_barrier(sums)[0]


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _add_backward)


class Linear(nnx.Module):
    """Linear layer `x @ kernel + bias` over the last axis.

    Args:
      inputs, outputs: input and output width.
      axes: logical axes of the kernel, which determine its sharding: ("embed", "hidden") for an up-projection,
        ("hidden", "embed") for a down-projection.
      bias: whether to add a bias.
      scale: factor of the initial kernel, which is LeCun normal (variance 1 / inputs); 0 initialises the zero map.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        axes: tuple[str, str] = ("embed", "none"),
        bias: bool = True,
        scale: float = 1.0,
    ):
        kernel = jax.nn.initializers.lecun_normal()(rngs.params(), (inputs, outputs), jnp.float32)
        self.kernel = parameter(kernel * scale, *axes)
        # A bias along "embed" is small, so it stays replicated.
        self.bias = parameter(jnp.zeros(outputs), "none" if axes[1] == "embed" else axes[1]) if bias else None

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Applies the layer in the dtype of `x`."""
        y = project(x, self.kernel[...].astype(x.dtype))
        y = y if self.bias is None else add_bias(y, self.bias[...])
        # Name the sum rather than the product: recomputing the bias addition before a kernel would cost a memory pass.
        return checkpoint_name(y, WIDE_PRODUCT if y.shape[-1] > x.shape[-1] else PRODUCT)


class Embedding(nnx.Module):
    """Embedding table. Out-of-range indices are clipped, since absent data may hold any value.

    Args:
      entries: number of vectors.
      width: width of each vector.
    """

    def __init__(self, entries: int, width: int, *, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (entries, width)) * width**-0.5
        self.table = parameter(table, "vocabulary" if entries % 128 == 0 else "none", "embed")

    def __call__(self, indices: Int[Array, ...], dtype=jnp.float32) -> Float[Array, "... width"]:
        """Looks up `indices` and casts the vectors to `dtype`."""
        return self.table[...].at[indices].get(mode="clip").astype(dtype)
