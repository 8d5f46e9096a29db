"""The optimiser: any of Optax by name, with a schedule, weight decay where it belongs, and transforms before it."""

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
"""Parameters that are not maps of their input: shrinking them does not make a model simpler."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The section `optimizer`; every further key is an argument of the Optax function `name`.

    Attributes:
      name: a function of Optax that takes `learning_rate`: "adamw", "lion", "adafactor", "sgd", …
      weight_decay: decoupled, times the learning rate, where the optimiser has it, else added to the gradients.
      no_decay: regular expressions of parameter names, like "encoders/image/…/bias", that do not decay.
      moments: what the optimiser's state is kept in; "bfloat16" halves it, with stochastic rounding.
      clip: gradients of a larger global norm are scaled down to this; None leaves them.
      transforms: what changes gradients before the optimiser, each {"kind": a name in `TRANSFORMS`, …}.
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
    """The name of a leaf of the parameters: its keys, joined by "/"."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def make_optimizer(section: Any, schedule: Schedule) -> optax.GradientTransformation:
    """Makes the optimiser from the section `optimizer` and the schedule of the learning rate.

    Raises:
      UserError: where Optax has no such optimiser, or the optimiser no such argument.
    """
    if not hasattr(section, "items"):
        raise UserError("optimizer", f"{section!r} is not a section", "give a dict with the key 'name'")
    own = {field.name for field in dataclasses.fields(OptimizerConfig)}
    given = dict(section.items())
    config = build(OptimizerConfig, {key: value for key, value in given.items() if key in own}, "optimizer")
    options = {key: value for key, value in given.items() if key not in own}
    function = getattr(optax, config.name, None)
    known = inspect.signature(function).parameters if callable(function) else {}
    if "learning_rate" not in known:
        candidates = ("adamw", "adam", "lion", "adafactor", "sgd", "lamb", "adabelief", "rmsprop")
        raise UserError("optimizer.name", f"Optax has no optimiser {config.name!r}", nearest(config.name, candidates))
    if "learning_rate" in options:
        raise UserError("optimizer.learning_rate", "the schedule sets the learning rate", "set schedule.peak")
    for key in options:
        if key not in known:
            raise UserError(
                f"optimizer.{key}", f"unknown key {key!r}", nearest(key, {*own, *known} - {"learning_rate"})
            )

    def decays(parameters):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not any(re.search(pattern, path_name(path)) for pattern in config.no_decay), parameters
        )

    parts = [choose(TRANSFORMS, part, f"optimizer.transforms[{i}]") for i, part in enumerate(config.transforms)]
    chain = [transform()(options) for transform, options in parts]
    if config.clip is not None:
        chain.append(optax.clip_by_global_norm(config.clip))
    after = []
    if "weight_decay" in known:
        options["weight_decay"] = config.weight_decay
        if "mask" in known:
            options["mask"] = decays
    elif "weight_decay_rate" in known and config.weight_decay:
        # Adafactor's own is not times the learning rate: what suits AdamW would wipe the parameters out.
        after = [decoupled_decay(config.weight_decay, schedule, decays)]
    elif config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
    optimizer = call_optax(config.name, {"learning_rate": schedule, **options}, "optimizer")
    chain.append(in_bfloat16(optimizer) if config.moments == "bfloat16" else optimizer)
    return optax.chain(*chain, *after)


def decoupled_decay(rate: float, schedule: Schedule, mask: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Shrinks parameters by `rate` times the learning rate (Loshchilov and Hutter, Decoupled Weight Decay, 2019)."""

    def init(parameters):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, parameters):
        factor = rate * schedule(state.count)
        updates = jax.tree.map(lambda u, p, m: u - factor * p if m else u, updates, parameters, mask(parameters))
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)
