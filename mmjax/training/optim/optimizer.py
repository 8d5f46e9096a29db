"""Optimiser: any Optax optimiser by name, with schedule, weight-decay mask, gradient clipping and transforms."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from mmjax.config import AtLeast, build, choose
from mmjax.errors import UserError, nearest
from mmjax.training.optim import TRANSFORMS
from mmjax.training.optim.moments import in_bfloat16
from mmjax.training.optim.schedules import Schedule, call_optax

NO_DECAY = (r"(^|/)(bias|scale|log_temperature)$", r"(^|/)(queries|query)$")
"""Parameters without weight decay (regular expressions): not weight matrices, so decay does not regularise them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The config section `optimizer`; further keys are arguments of the Optax function `name`.

    Attributes:
      name: an Optax optimiser with an argument `learning_rate`: "adamw", "lion", "adafactor", "sgd", ...
      weight_decay: weight decay, decoupled and scaled by the learning rate if the optimiser supports it, else L2
        regularisation added to the gradients.
      no_decay: regular expressions of parameter names, for example "encoders/image/.*/bias", without weight decay.
      moments: dtype of the optimiser state; "bfloat16" halves its memory, with stochastic rounding.
      clip: maximum global norm of the gradients; None disables clipping.
      transforms: Optax transforms applied to the gradients before the optimiser, each {"kind": a key of `TRANSFORMS`,
        options}.
    """

    name: str = "adamw"
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    no_decay: tuple[str, ...] = NO_DECAY
    moments: Literal["float32", "bfloat16"] = "float32"
    clip: Annotated[float, AtLeast(0)] | None = 1.0
    transforms: tuple[Any, ...] = ()

    def __post_init__(self):
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no_decay {pattern!r}: {error}; give a regular expression") from error


def path_name(path) -> str:
    """Name of a parameter: the keys of its pytree path joined by "/"."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def make_optimizer(section: Any, schedule: Schedule) -> optax.GradientTransformation:
    """Builds the optimiser from the config section `optimizer` and the learning-rate schedule.

    Raises:
      UserError: if Optax has no such optimiser, or the optimiser has no such argument.
    """
    if not hasattr(section, "items"):
        raise UserError("optimizer", f"{section!r} is not a section", "give a dict with the key 'name'")
    fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
    config = build(OptimizerConfig, {key: value for key, value in section.items() if key in fields}, "optimizer")
    options = {key: value for key, value in section.items() if key not in fields}
    function = getattr(optax, config.name, None)
    known = inspect.signature(function).parameters if callable(function) else {}
    if "learning_rate" not in known:
        candidates = ("adamw", "adam", "lion", "adafactor", "sgd", "lamb", "adabelief", "rmsprop")
        raise UserError("optimizer.name", f"Optax has no optimiser {config.name!r}", nearest(config.name, candidates))
    if "learning_rate" in options:
        raise UserError("optimizer.learning_rate", "the schedule sets the learning rate", "set schedule.peak")
    for key in options:
        if key not in known:
            keys = {*fields, *known} - {"learning_rate"}
            raise UserError(f"optimizer.{key}", f"unknown key {key!r}", nearest(key, keys))

    def decay_mask(parameters):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(re.search(pattern, path_name(path)) for pattern in config.no_decay), parameters
        )

    chosen = [choose(TRANSFORMS, item, f"optimizer.transforms[{i}]") for i, item in enumerate(config.transforms)]
    chain = [transform()(transform_config) for transform, transform_config in chosen]
    if config.clip is not None:
        chain.append(optax.clip_by_global_norm(config.clip))
    after = []
    if "weight_decay" in known:
        options["weight_decay"] = config.weight_decay
        if "mask" in known:
            options["mask"] = decay_mask
    elif "weight_decay_rate" in known and config.weight_decay:
        # Adafactor's own decay is not scaled by the learning rate: values that suit AdamW would decay parameters to 0.
        after = [decoupled_decay(config.weight_decay, schedule, decay_mask)]
    elif config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    optimizer = call_optax(config.name, {"learning_rate": schedule, **options}, "optimizer")
    chain.append(in_bfloat16(optimizer) if config.moments == "bfloat16" else optimizer)
    return optax.chain(*chain, *after)


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
