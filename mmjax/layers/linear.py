"""Affine maps and lookup tables, in the dtype of their input, with float32 parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mmjax.sharding import parameter

PRODUCT = "product"
"""The name of what rematerialisation may keep: JAX's own policies see no product inside of `project`.

Also that of numbers that are few and took a pass over many to find, such as the means of a norm.
"""

WIDE_PRODUCT = "wide product"
"""The name of products that are wider than what they were made of, and so take the most memory to keep."""


@jax.custom_vjp
def project(x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "... outputs"]:
    """`x @ kernel`, with a gradient that no compiler has to transpose.

    The derivative that JAX makes of the product asks for (dy^T x)^T, which XLA for CPUs carries out with copies: the
    gradient of an MLP of width 128 takes twice the time (`benchmarks/linear.py`). Here it is x^T dy from the start.
    """
    return (_flat(x) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _project_forward(x, kernel):
    return project(x, kernel), (x, kernel)


def _project_backward(saved, dy):
    x, kernel = saved
    flat = _flat(dy)
    dx = jax.lax.dot_general(flat, kernel, (((1,), (1,)), ((), ())))
    return dx.reshape(x.shape), jax.lax.dot_general(_flat(x), flat, (((0,), (0,)), ((), ())))


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def add_bias(y: Float[Array, "... outputs"], bias: Float[Array, " outputs"]) -> Float[Array, "... outputs"]:
    """`y + bias`, in the dtype of `y`; the gradient of the bias is summed in float32."""
    return y + bias.astype(y.dtype)


def _add_backward(_, dy):
    # The sum over tokens as a product with ones, in rows as many as a TPU's registers have: its matrix unit has time
    # for them, while another pass over `dy` costs the time of reading it.
    ones = jnp.ones((8, dy.size // dy.shape[-1]), dy.dtype)
    over_tokens = (((1,), (0,)), ((), ()))
    highest = jax.lax.Precision.HIGHEST
    sums = jax.lax.dot_general(ones, _flat(dy), over_tokens, precision=highest, preferred_element_type=jnp.float32)
    # The barrier keeps XLA for TPUs from one fusion of the sum over devices, the row that is taken and the part of it
    # that a device of `fsdp` keeps, at which it fails where a bias is wide and `fsdp` alone splits the batch.
    return dy, jax.lax.optimization_barrier(sums)[0]


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _add_backward)


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last dimension; the kernel's logical axes say how it is split.

    Args:
      inputs, outputs: widths.
      axes: logical axes of the kernel, ("embed", "hidden") for a map that widens, ("hidden", "embed") for its inverse.
      scale: multiplies the initial kernel, whose variance is 1 / inputs (LeCun); 0 starts as the zero map.
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
        # A bias along the fsdp dimension is small: it stays whole.
        self.bias = parameter(jnp.zeros(outputs), "none" if axes[1] == "embed" else axes[1]) if bias else None

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        y = project(x, self.kernel[...].astype(x.dtype))
        y = y if self.bias is None else add_bias(y, self.bias[...])
        # With the bias: in front of a kernel, to add it again would be a pass of its own.
        return checkpoint_name(y, WIDE_PRODUCT if y.shape[-1] > x.shape[-1] else PRODUCT)


class Embedding(nnx.Module):
    """A table of vectors. Indices outside it are clipped: data that is absent may hold anything."""

    def __init__(self, entries: int, width: int, *, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (entries, width)) * width**-0.5
        self.table = parameter(table, "vocabulary" if entries % 128 == 0 else "none", "embed")

    def __call__(self, indices: Int[Array, ...], dtype=jnp.float32) -> Float[Array, "... width"]:
        return self.table[...].at[indices].get(mode="clip").astype(dtype)
