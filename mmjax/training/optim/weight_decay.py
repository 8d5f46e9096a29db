"""Weight decay: the parameters that it applies to, and optimisers whose own weight decay has no mask."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.layers import layer_axes
from mmjax.training.optim.schedules import Schedule

NOT_MATRICES = re.compile(
    r"(\w+_)?(bias|scale|gain|table|embedding|embed|position|token|register|query|latent|column|temperature)s?"
    r"|(\w+_)?queries|biases|cls|pos"
)
"""Names of parameters that are not weight matrices, whatever their rank: vectors and tables of vectors."""


def path_name(path: Sequence[Any]) -> str:
    """Name of a parameter: the keys of its pytree path joined by "/"."""
    return "/".join(str(key) for key in keys(path))


def keys(path: Sequence[Any]) -> list[Any]:
    """Dict keys, attribute names and indices of a pytree path."""
    return [getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path]


def is_matrix(path: Sequence[Any], leaf: Any) -> bool:
    """Returns True for weight matrices and convolution kernels, the parameters that weight decay regularises.

    Biases, scales of norms, embeddings, positions, class tokens and queries act on features elementwise; decay would
    only pull them to 0.

    Args:
      path: pytree path of the parameter, in a tree of stacked or unstacked layers.
      leaf: the parameter.
    """
    names = keys(path)
    return leaf.ndim - layer_axes(names) >= 2 and not NOT_MATRICES.fullmatch(str(names[-1]) if names else "")


def decay_mask(no_decay: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Returns a function from parameters to a pytree of bools, True where weight decay applies.

    Args:
      no_decay: regular expressions of names of further parameters without weight decay. Names omit layer numbers.
    """

    def decays(path, leaf):
        name = re.sub(r"(^|/)layers/\d+(?=/)", r"\1layers", path_name(path))
        return is_matrix(path, leaf) and not any(re.search(pattern, name) for pattern in no_decay)

    return lambda parameters: jax.tree_util.tree_map_with_path(decays, parameters)


def decay_matrices_only(
    inner: optax.GradientTransformation, mask: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Restricts the weight decay of `inner` to parameters where `mask` is True, by passing 0 for all others.

    `inner` must use the parameters only for weight decay.
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, parameters, **extra_args):
        seen = jax.tree.map(lambda p, m: p if m else jnp.zeros_like(p), parameters, mask(parameters))
        return inner.update(updates, state, seen, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def decoupled_decay(rate: float, schedule: Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Decoupled weight decay: subtracts rate x learning rate x parameter.

    Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019).

    Args:
      rate: weight decay.
      schedule: learning-rate schedule.
      mask: function from parameters to a pytree of bools, True where decay applies.
    """

    def init(parameters):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, parameters):
        factor = rate * schedule(state.count)
        updates = jax.tree.map(lambda u, p, m: u - factor * p if m else u, updates, parameters, mask(parameters))
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)
