"""A stack of equal layers as one scan: compile time and host overhead do not grow with depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.layers.randomness import Randomness

REMATERIALISATION: dict[str, Callable[[Callable], Callable]] = {
    # Keep every activation for the backward pass.
    "none": lambda body: body,
    # Keep the results of matrix products, recompute the cheap rest.
    "dots": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    # Keep only each layer's input.
    "full": jax.checkpoint,
}


class Stack(nnx.Module):
    """`depth` copies of a layer, applied one after the other.

    The layer is called as `layer(carry, *shared, random, drop)` and returns the next carry, a tree of the same shapes.

    Args:
      make: makes one layer from `nnx.Rngs`.
      depth: number of layers.
      rematerialise: a name in `REMATERIALISATION`.
      scan: False unrolls the loop, for comparison; the parameters are stacked in both cases.
      drop_path: stochastic depth; the rate grows linearly from 0 at the first layer to this at the last.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        rngs: nnx.Rngs,
        rematerialise: str = "none",
        scan: bool = True,
        drop_path: float = 0.0,
    ):
        self.depth, self.rematerialise, self.scan, self.drop_path = depth, rematerialise, scan, drop_path
        keys = jax.random.split(rngs.params(), depth)
        self.layers = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)

    def __call__(self, carry: Any, *shared: Any, random: Randomness | None = None) -> Any:
        graph, state = nnx.split(self.layers)
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.depth > 1 else jnp.array([self.drop_path])

        def body(carry, layer):
            parameters, number, rate = layer
            draws = None if random is None else random.fold(number)
            drop = rate if self.drop_path else 0.0
            return nnx.merge(graph, parameters)(carry, *shared, draws, drop), None

        body = REMATERIALISATION[self.rematerialise](body)
        layers = (nnx.to_pure_dict(state), jnp.arange(self.depth), rates)
        if self.scan:
            return jax.lax.scan(body, carry, layers)[0]
        for number in range(self.depth):
            carry, _ = body(carry, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
        return carry
