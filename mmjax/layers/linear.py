"""Affine maps and lookup tables, in the dtype of their input, with float32 parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.sharding import parameter


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
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors. Indices outside it are clipped: data that is absent may hold anything."""

    def __init__(self, entries: int, width: int, *, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (entries, width)) * width**-0.5
        self.table = parameter(table, "vocabulary" if entries % 128 == 0 else "none", "embed")

    def __call__(self, indices: Int[Array, "..."], dtype=jnp.float32) -> Float[Array, "... width"]:
        return self.table[...].at[indices].get(mode="clip").astype(dtype)
