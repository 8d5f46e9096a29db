"""Feed-forward layer of a Transformer block."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Linear
from mmjax.sharding import shard


class MLP(nnx.Module):
    """Two linear layers with a GELU (tanh approximation) between them.

    Args:
      width: input and output width.
      hidden: hidden width.
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, axes=("embed", "hidden"), rngs=rngs)
        self.down = Linear(hidden, width, axes=("hidden", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        hidden = shard(self.up(x), "batch", "tokens", "hidden")
        # Recomputing GELU in the backward pass is cheaper than saving its output and five residuals of its gradient.
        down = jax.checkpoint(lambda hidden: self.down(jax.nn.gelu(hidden)), prevent_cse=False)
        return shard(down(hidden), "batch", "tokens", "width")
