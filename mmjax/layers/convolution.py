"""Convolution over one, two or three spatial axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import project
from mmjax.sharding import parameter, shard


def left_padding(kernel: int, stride: int) -> int:
    """Left zero padding of a convolution with padding "ALIGNED"; that of "SAME" at multiples of the stride."""
    return max(kernel - stride, 0) // 2


class Convolution(nnx.Module):
    """Convolution from [B, *space, inputs] to [B, *space', outputs], in the dtype of the input.

    Args:
      inputs, outputs: number of channels.
      kernel: kernel size per spatial axis.
      stride: stride per spatial axis; defaults to 1.
      padding: "SAME", "VALID" or "ALIGNED". The latter is "SAME" with a left padding that does not depend on the length
        of the input, so that zeros at the end of the input change no output before them.
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

    def _padding(self, space: tuple[int, ...]) -> str | list[tuple[int, int]]:
        """Padding (left, right) of each axis for an input of this shape."""
        if self.padding != "ALIGNED":
            return self.padding
        pads = []
        for length, kernel, stride in zip(space, self.kernel[...].shape, self.stride, strict=False):
            left = left_padding(kernel, stride)
            pads.append((left, max((-(-length // stride) - 1) * stride + kernel - length - left, 0)))
        return pads

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
            padding=self._padding(x.shape[1:-1]),
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        )
        # Keep the spatial axes unsharded. If XLA shards them and the mesh has another, unused axis, the gradient of the
        # kernel is multiplied by the size of that axis (JAX 0.10.2 and 0.12.0.1 on CPUs).
        y = shard(y, "batch", *("none",) * (y.ndim - 1))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
