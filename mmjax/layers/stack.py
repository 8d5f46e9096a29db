"""Stack of identical layers, run as one `lax.scan`: compile time and host overhead do not grow with depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.layers.linear import PRODUCT, WIDE_PRODUCT
from mmjax.layers.randomness import Randomness

_POLICIES = jax.checkpoint_policies
Policy = Literal["none", "dots", "dots_except_mlp", "offload", "full"]
Rematerialise = Policy | tuple[Policy, ...]
"""One policy for all layers, or one per layer."""


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Matches the cuDNN attention primitive, whose outputs have no checkpoint name but are needed by its derivative."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _save(*names: str) -> Callable:
    return _POLICIES.save_from_both_policies(_POLICIES.save_only_these_names(*names), _is_cudnn_attention)


REMATERIALISATION: dict[Policy, Callable | None] = {
    # Save matmul outputs, recompute the cheap rest.
    "dots": _save(PRODUCT, WIDE_PRODUCT),
    # Recompute the hidden units of MLPs too: 10 % more compute, 40 % less saved memory than "dots".
    "dots_except_mlp": _save(PRODUCT),
    # Save matmul outputs in host memory; transfers overlap with the computation of the next layers.
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PRODUCT, WIDE_PRODUCT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # Save only the input of each layer.
    "full": None,
}
"""Checkpoint policy per name. "none" is not listed: it applies no checkpointing and saves every activation."""


def rematerialised(body: Callable, policy: Policy, looped: bool) -> Callable:
    """Wraps `body` in `jax.checkpoint` with `policy`; set `looped` for the body of a scan."""
    if policy == "none":
        return body
    # Barriers stop XLA from merging recomputed values with the original ones (CSE). It cannot merge them across the
    # forward and backward loops anyway, where a barrier would only copy the values that the loop saves.
    return jax.checkpoint(body, policy=REMATERIALISATION[policy], prevent_cse=not looped)


class Stack(nnx.Module):
    """`depth` layers of the same structure, applied in sequence. Parameters are stacked, [depth, ...].

    Each layer is called as `layer(carry, *shared, rng, drop_rate)` and returns the next carry, a tree of the same
    shapes.

    Args:
      make: builds one layer from `nnx.Rngs`.
      depth: number of layers.
      rematerialise: "none" or a key of `REMATERIALISATION`, or a sequence of one policy per layer; adjacent layers with
        the same policy share a scan.
      scan: False unrolls the loop, which saves slicing and stacking: faster steps, slower compilation.
      drop_path: stochastic depth rate of the last layer; the rate grows linearly from 0 at the first layer.

    Raises:
      ValueError: if `rematerialise` is a sequence whose length differs from `depth`.
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
            raise ValueError(f"rematerialise has {len(policies)} entries for {depth} layers; give one entry or {depth}")
        self.depth, self.policies, self.scan, self.drop_path = depth, policies, scan, drop_path
        keys = jax.random.split(rngs.params(), depth)
        self.layers = nnx.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)

    def __call__(self, carry: Any, *shared: Any, rng: Randomness | None = None) -> Any:
        """Applies all layers to `carry`; `rng` is None outside training."""
        graph, state = nnx.split(self.layers)
        rates = jnp.linspace(0.0, self.drop_path, self.depth) if self.depth > 1 else jnp.array([self.drop_path])

        def body(carry, layer):
            parameters, index, rate = layer
            layer_rng = None if rng is None else rng.fold_in(index)
            drop_rate = rate if self.drop_path else 0.0
            return nnx.merge(graph, parameters)(carry, *shared, layer_rng, drop_rate), None

        layers = (nnx.to_pure_dict(state), jnp.arange(self.depth), rates)
        first = 0
        for policy, group in itertools.groupby(self.policies):
            last = first + len(list(group))
            chunk = layers
            if last - first < self.depth:
                chunk = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], layers)
            # XLA unrolls a loop of one iteration, so it needs the barriers.
            step = rematerialised(body, policy, looped=self.scan and last - first > 1)
            carry, _ = jax.lax.scan(step, carry, chunk, unroll=not self.scan)
            first = last
        return carry


STACKED = "layers"
"""Attribute of `Stack` with its layers, and their key in parameter trees. The arrays have a leading layer axis."""


def layer_axes(path: Sequence[Any]) -> int:
    """Returns the number of leading layer axes of the array at `path`: one per enclosing `Stack`.

    An integer key after `layers` is an index into a list of modules or into an unstacked stack: no layer axis.

    Args:
      path: dict keys from the root of the parameters to the array.
    """
    return sum(key == STACKED and not isinstance(after, int) for key, after in itertools.pairwise(path))


def unstack_layers(tree: Any, like: Any = None) -> Any:
    """Replaces each stack by its layers: `layers/kernel` [depth, ...] becomes `layers/0/kernel` [...], and so on.

    Norms, statistics and name patterns then apply to single layers. Nested stacks are unstacked too.

    Args:
      tree: parameters, or a pytree that contains dicts of their structure, such as an optimiser state.
      like: parameters with stacked layers, which give the depths; by default `tree`.
    """
    return jax.tree.map(lambda node: _walk(node, node if like is None else like, 0, _unstack), tree, is_leaf=_is_dict)


def restack_layers(tree: Any, like: Any) -> Any:
    """Reverts `unstack_layers`.

    Args:
      tree: unstacked parameters, or a pytree that contains dicts of their structure.
      like: parameters with stacked layers.
    """
    return jax.tree.map(lambda node: _walk(node, like, 0, _restack), tree, is_leaf=_is_dict)


def _is_dict(node: Any) -> bool:
    return isinstance(node, dict)


def _depth(key: Any, like: Any, level: int) -> int | None:
    """Returns the depth of the stack `like`, nested in `level` other stacks, or None if it is not a stack."""
    if key != STACKED or not _is_dict(like) or any(isinstance(name, int) for name in like):
        return None
    return next((leaf.shape[level] for leaf in jax.tree.leaves(like)), None)


def _walk(node: Any, like: Any, level: int, convert: Callable) -> Any:
    """Applies `convert(stack, depth, descend)` to each stack in `node`; `descend` walks a single layer of it."""
    if not _is_dict(node) or not _is_dict(like):
        return node
    walked: dict[Any, Any] = {}
    for key, child in node.items():
        depth = _depth(key, like.get(key), level)
        if depth is None:
            walked[key] = _walk(child, like.get(key), level, convert)
        else:
            walked[key] = convert(child, depth, lambda layer, key=key: _walk(layer, like[key], level + 1, convert))
    return walked


def _unstack(stack: Any, depth: int, descend: Callable) -> dict[int, Any]:
    return {i: descend(jax.tree.map(lambda leaf, i=i: leaf[i], stack)) for i in range(depth)}


def _restack(layers: Any, depth: int, descend: Callable) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(descend(layers[i]) for i in range(depth)))
