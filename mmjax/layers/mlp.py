"""The feed-forward half of a Transformer block."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmjax.layers.linear import Linear
from mmjax.sharding import shard


class MLP(nnx.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, axes=("embed", "hidden"), rngs=rngs)
        self.down = Linear(hidden, width, axes=("hidden", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        hidden = shard(self.up(x), "batch", "tokens", "hidden")
        # GELU again in the backward pass costs less than to keep it and the five arrays that its derivative is made of.
        down = jax.checkpoint(lambda hidden: self.down(jax.nn.gelu(hidden)), prevent_cse=False)
        return shard(down(hidden), "batch", "tokens", "width")
