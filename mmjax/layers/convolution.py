"""Convolution over one, two or three spatial axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import project
from mmjax.sharding import parameter, shard


class Convolution(nnx.Module):
    """Convolution from [B, *space, inputs] to [B, *space', outputs], in the dtype of the input.

    Args:
      inputs, outputs: number of channels.
      kernel: kernel size per spatial axis.
      stride: stride per spatial axis; defaults to 1.
      padding: "SAME" or "VALID".
      bias: whether to add a bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
        stride: tuple[int, ...] | None = None,
        padding: str = "SAME",
        bias: bool = True,
    ):
        self.stride, self.padding = stride or (1,) * len(kernel), padding
        shape = (*kernel, inputs, outputs)
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.kernel = parameter(init(rngs.params(), shape, jnp.float32), *("none",) * (len(kernel) + 1), "embed")
        self.bias = parameter(jnp.zeros(outputs), "none") if bias else None

    def apply_to_windows(self, windows: Float[Array, "... window"]) -> Float[Array, "... outputs"]:
        """Applies the kernel to extracted windows, each flattened from [*kernel, inputs]."""
        kernel = self.kernel[...].reshape(-1, self.kernel[...].shape[-1]).astype(windows.dtype)
        y = project(windows, kernel)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def __call__(self, x: Float[Array, "batch *space inputs"]) -> Float[Array, "batch *space2 outputs"]:
        """Convolves `x`, with float32 parameters cast to its dtype."""
        space = "DHW"[-len(self.stride) :]
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            window_strides=self.stride,
            padding=self.padding,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        )
        # Keep the spatial axes unsharded. If XLA shards them and the mesh has another, unused axis, the gradient of the
        # kernel is multiplied by the size of that axis (JAX 0.10.2 and 0.12.0.1 on CPUs).
        y = shard(y, "batch", *("none",) * (y.ndim - 1))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
