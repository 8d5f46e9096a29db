"""Optimiser: any Optax optimiser by name, with schedule, weight-decay mask, gradient clipping and transforms."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from mmjax.config import Above, AtLeast, build, choose
from mmjax.errors import UserError, nearest
from mmjax.training.optim import TRANSFORMS
from mmjax.training.optim.moments import in_bfloat16
from mmjax.training.optim.per_layer import per_layer
from mmjax.training.optim.schedules import Schedule, call_optax, optax_arguments
from mmjax.training.optim.weight_decay import decay_mask, decay_matrices_only, decoupled_decay

ELEMENTWISE = (
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad", "lion", "nadam",
    "nadamw", "optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop", "sgd", "sign_sgd", "signum",
    "yogi",
)  # fmt: skip
"""Optimisers that update each element independently of the others; all others are applied with `per_layer`."""

UNSUPPORTED = {
    "lbfgs": ("needs a line search, which evaluates the loss several times a step", "use 'adamw' or 'sgd'"),
    "optimistic_adam": ("takes no schedule", "use 'optimistic_adam_v2'"),
    "rprop": ("needs gradients of the whole dataset, and takes no schedule", "use 'sign_sgd' or 'lion'"),
}
"""Optimisers of Optax that do not fit the train step: {name: (problem, remedy)}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The config section `optimizer`; further keys are arguments of the Optax function `name`.

    Attributes:
      name: an Optax optimiser with an argument `learning_rate`: "adamw", "lion", "adafactor", "sgd", ...
      weight_decay: weight decay of weight matrices and convolution kernels; not of biases, norms, embeddings,
        positions, class tokens and queries. Decoupled and scaled by the learning rate if the optimiser supports it,
        else L2 regularisation added to the gradients.
      no_decay: regular expressions of names of further parameters without weight decay, for example "tasks/.*/kernel".
      moments: dtype of the optimiser state; "bfloat16" halves its memory, with stochastic rounding.
      clip: maximum global norm of the gradients; None disables clipping.
      transforms: Optax transforms applied to the gradients before the optimiser, each {"kind": a key of `TRANSFORMS`,
        options}.
    """

    name: str = "adamw"
    weight_decay: Annotated[float, AtLeast(0)] = 0.0
    no_decay: tuple[str, ...] = ()
    moments: Literal["float32", "bfloat16"] = "float32"
    clip: Annotated[float, Above(0, ", or None to disable clipping")] | None = 1.0
    transforms: tuple[Any, ...] = ()

    def __post_init__(self):
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no_decay {pattern!r}: {error}; give a regular expression") from error


def make_optimizer(section: Any, schedule: Schedule) -> optax.GradientTransformation:
    """Builds the optimiser from the config section `optimizer` and the learning-rate schedule.

    Raises:
      UserError: if Optax has no such optimiser, it does not fit the train step, or an argument is invalid.
    """
    if not hasattr(section, "items"):
        raise UserError("optimizer", f"{section!r} is not a section", "give a dict with the key 'name'")
    fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
    config = build(OptimizerConfig, {key: value for key, value in section.items() if key in fields}, "optimizer")
    options = {key: value for key, value in section.items() if key not in fields}
    known = _arguments(config.name)
    _check_options(options, known, fields)
    transforms = [choose(TRANSFORMS, item, f"optimizer.transforms[{i}]") for i, item in enumerate(config.transforms)]
    before = [per_layer(cls()(options)) for cls, options in transforms]
    if config.clip is not None:
        before.append(optax.clip_by_global_norm(config.clip))
    optimizer = _with_weight_decay(config, options, known, schedule)
    optimizer = in_bfloat16(optimizer) if config.moments == "bfloat16" else optimizer
    chain = optax.chain(*before, optimizer)
    _try(chain, config.name)
    return chain


def _arguments(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of an Optax optimiser.

    Raises:
      UserError: if Optax has no such optimiser, or it does not fit the train step.
    """
    if name in UNSUPPORTED:
        problem, remedy = UNSUPPORTED[name]
        raise UserError("optimizer.name", f"{name!r} {problem}", remedy)
    known = optax_arguments(name)
    if "learning_rate" not in known or name.startswith("scale_by_"):
        candidates = (*ELEMENTWISE, "adafactor", "fromage", "lamb", "lars", "noisy_sgd", "novograd", "sm3")
        lacks_rate = known and "learning_rate" not in known
        problem = f"optax.{name} has no argument learning_rate" if lacks_rate else f"Optax has no optimiser {name!r}"
        raise UserError("optimizer.name", problem, nearest(name, candidates))
    return known


def _check_options(options: dict[str, Any], known: dict[str, inspect.Parameter], fields: set[str]) -> None:
    if "learning_rate" in options:
        raise UserError("optimizer.learning_rate", "the schedule sets the learning rate", "set schedule.peak")
    for key, value in options.items():
        if key in ("mask", "weight_decay_mask"):
            raise UserError(f"optimizer.{key}", "the weight decay mask follows from the parameters", "set no_decay")
        if key == "weight_decay_rate":
            raise UserError(f"optimizer.{key}", "is not scaled by the learning rate", "set weight_decay")
        if key not in known:
            raise UserError(f"optimizer.{key}", f"unknown key {key!r}", nearest(key, {*fields, *known} - {"mask"}))
        if "clip" in key and isinstance(value, (int, float)) and value <= 0:
            raise UserError(f"optimizer.{key}", f"{value!r} removes all updates", "give a value above 0, or None")


def _with_weight_decay(
    config: OptimizerConfig, options: dict[str, Any], known: dict[str, inspect.Parameter], schedule: Schedule
) -> optax.GradientTransformation:
    """Builds the optimiser with weight decay: its own where it has a mask, else decoupled or L2."""
    mask, rate = decay_mask(config.no_decay), config.weight_decay

    def make(**extra: Any) -> optax.GradientTransformation:
        # SM3 is linear in its learning rate, but takes no schedule.
        constant = config.name == "sm3"
        optimizer = call_optax(
            config.name, {"learning_rate": 1.0 if constant else schedule, **options, **extra}, "optimizer"
        )
        optimizer = optax.chain(optimizer, optax.scale_by_schedule(schedule)) if constant else optimizer
        return optimizer if config.name in ELEMENTWISE else per_layer(optimizer)

    for name in ("mask", "weight_decay_mask"):
        if "weight_decay" in known and name in known:
            return make(weight_decay=rate, **{name: mask})
    if config.name == "novograd":
        return decay_matrices_only(make(weight_decay=rate), mask)
    if not rate:
        return make(**{"weight_decay": 0.0} if "weight_decay" in known else {})
    if "weight_decay" in known:
        problem = f"Optax's {config.name} would decay biases and norms too"
        raise UserError("optimizer.weight_decay", problem, "set it to 0, or use another optimizer")
    if "weight_decay_rate" in known:
        # Adafactor's own decay is not scaled by the learning rate: values that suit AdamW would decay parameters to 0.
        return optax.chain(make(), decoupled_decay(rate, schedule, mask))
    return optax.chain(optax.add_decayed_weights(rate, mask=mask), make())


def _try(optimizer: optax.GradientTransformation, name: str) -> None:
    """Traces two updates of small parameters: Optax checks most arguments only in `init` and `update`.

    Raises:
      UserError: if a trace fails or the updates do not fit the parameters.
    """
    parameters = {"bias": jnp.zeros(2), "layers": {"kernel": jnp.zeros((2, 2, 2))}}

    def updated_twice(parameters):
        state = optimizer.init(parameters)
        for _ in range(2):
            updates, state = optimizer.update(parameters, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        return parameters

    try:
        shapes = jax.eval_shape(updated_twice, parameters)
    except UserError:
        raise
    except Exception as error:
        problem = f"Optax's {name} raises: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise UserError("optimizer", problem, "see the arguments of this optimizer in Optax") from error
    if jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, parameters):
        raise UserError("optimizer", f"Optax's {name} changes the shapes of parameters", "check its arguments")
