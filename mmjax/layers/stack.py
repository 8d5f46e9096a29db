"""A stack of equal layers as one scan: compile time and host overhead do not grow with depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.layers.linear import PRODUCT, WIDE_PRODUCT
from mmjax.layers.randomness import Randomness

_POLICIES = jax.checkpoint_policies
Policy = Literal["none", "dots", "dots_except_mlp", "offload", "full"]
Rematerialise = Policy | tuple[Policy, ...]
"""One policy for all layers, or one for each."""


def _attended(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it is cuDNN's attention, products without a name, whose derivative needs what it returns."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _keep(*names: str) -> Callable:
    return _POLICIES.save_from_both_policies(_POLICIES.save_only_these_names(*names), _attended)


REMATERIALISATION: dict[Policy, Callable | None] = {
    # Keep the results of matrix products, recompute the cheap rest.
    "dots": _keep(PRODUCT, WIDE_PRODUCT),
    # Of these the hidden units of MLPs again, too: a tenth more to compute for two fifths less to keep.
    "dots_except_mlp": _keep(PRODUCT),
    # Keep them in the memory of the host, to which they move while the next layers compute.
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PRODUCT, WIDE_PRODUCT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # Keep only each layer's input.
    "full": None,
}
"""What is kept for the backward pass; "none" computes nothing again and keeps every activation."""


def rematerialised(body: Callable, policy: Policy, looped: bool) -> Callable:
    """`body`, of which the backward pass computes again what `policy` does not keep; `looped` in a loop of layers."""
    if policy == "none":
        return body
    # Barriers keep XLA from seeing that what is computed again is known. Between the two loops it cannot see that
    # anyway, and a barrier would only make it copy what the loop keeps.
    return jax.checkpoint(body, policy=REMATERIALISATION[policy], prevent_cse=not looped)


class Stack(nnx.Module):
    """`depth` copies of a layer, applied one after the other.

    The layer is called as `layer(carry, *shared, random, drop)` and returns the next carry, a tree of the same shapes.

    Args:
      make: makes one layer from `nnx.Rngs`.
      depth: number of layers.
      rematerialise: a name in `REMATERIALISATION`, or one for each layer; equal neighbours are scanned together.
      scan: False unrolls the loop, so that nothing has to be written into stacks and cut out of them again: quicker
        steps, slower to compile. The parameters are stacked in both cases.
      drop_path: stochastic depth; the rate grows linearly from 0 at the first layer to this at the last.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        rngs: nnx.Rngs,
        rematerialise: Rematerialise = "none",
        scan: bool = True,
        drop_path: float = 0.0,
    ):
        policies = (rematerialise,) * depth if isinstance(rematerialise, str) else tuple(rematerialise)
        if len(policies) != depth:
            raise ValueError(f"rematerialise has {len(policies)} names for {depth} layers; give one for each, or one")
        self.depth, self.policies, self.scan, self.drop_path = depth, policies, scan, drop_path
        keys = jax.random.split(rngs.params(), depth)
        self.layers = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)

    def __call__(self, carry: Any, *shared: Any, rng: Randomness | None = None) -> Any:
        graph, state = nnx.split(self.layers)
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.depth > 1 else jnp.array([self.drop_path])

        def body(carry, layer):
            parameters, number, rate = layer
            draws = None if rng is None else rng.fold_in(number)
            drop = rate if self.drop_path else 0.0
            return nnx.merge(graph, parameters)(carry, *shared, draws, drop), None

        layers = (nnx.to_pure_dict(state), jnp.arange(self.depth), rates)
        first = 0
        for policy, group in itertools.groupby(self.policies):
            last = first + len(list(group))
            some = (
                layers if last - first == self.depth else jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], layers)
            )
            # XLA takes a loop of one round apart.
            again = rematerialised(body, policy, looped=self.scan and last - first > 1)
            carry, _ = jax.lax.scan(again, carry, some, unroll=not self.scan)
            first = last
        return carry
