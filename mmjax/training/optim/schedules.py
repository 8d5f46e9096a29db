"""Schedules of the learning rate and of task weights.

A config gives a number (constant), or a section whose `kind` is a key of `SCHEDULES`, or "optax.NAME" for any Optax
schedule with its arguments. Schedules in `SCHEDULES` start with a linear warmup from 0 to `peak`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
import optax

from mmjax.config import Above, AtLeast, Count, NonNegative, choose
from mmjax.errors import UserError, nearest

Schedule = Callable[[Any], jax.Array | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Options common to all schedules.

    Attributes:
      peak: value after the warmup.
      warmup: steps of linear warmup from 0 to `peak`.
    """

    peak: Annotated[float, AtLeast(0.0)]
    warmup: NonNegative = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayConfig(ScheduleConfig):
    """Options of schedules that decay to a final value.

    Attributes:
      steps: step at which `end` is reached; defaults to `train.steps`. Set it to train longer without changing the
        schedule.
      end: final value.
    """

    steps: Count | None = None
    end: Annotated[float, AtLeast(0.0)] = 0.0


class Constant:
    """Constant at `peak` after the warmup."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        return optax.constant_schedule(config.peak)


class Cosine:
    """Cosine decay from `peak` to `end`.

    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts (2017).
    """

    Config = DecayConfig

    def __call__(self, config: DecayConfig, length: int) -> Schedule:
        cosine = optax.cosine_decay_schedule(1.0, length)
        return lambda step: config.end + (config.peak - config.end) * cosine(step)


class Linear:
    """Linear decay from `peak` to `end`."""

    Config = DecayConfig

    def __call__(self, config: DecayConfig, length: int) -> Schedule:
        return optax.linear_schedule(config.peak, config.end, length)


class Exponential:
    """Exponential decay from `peak` to `end`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ScheduleConfig):
        """Options of `Exponential`.

        Attributes:
          peak: value after the warmup, above 0.
          steps: step at which `end` is reached; defaults to `train.steps`. Set it to train longer without changing
            the schedule.
          end: final value, above 0; by default 1 % of `peak`.
        """

        peak: Annotated[float, Above(0.0)]
        steps: Count | None = None
        end: Annotated[float, Above(0.0)] | None = None

    def __call__(self, config: Config, length: int) -> Schedule:
        ratio = 0.01 if config.end is None else config.end / config.peak
        return optax.exponential_decay(config.peak, length, ratio, end_value=config.peak * ratio)


class Step:
    """Step decay: multiplies by `factor` at each of the `boundaries`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ScheduleConfig):
        """Options of `Step`.

        Attributes:
          boundaries: steps of the decay in increasing order, counted from the end of the warmup.
          factor: multiplier at each boundary.
        """

        boundaries: tuple[Count, ...]
        factor: Annotated[float, AtLeast(0.0)] = 0.1

        def __post_init__(self):
            if not self.boundaries:
                raise ValueError("boundaries is empty; give the steps of the decay, or use the kind 'constant'")
            if any(after <= before for before, after in zip(self.boundaries, self.boundaries[1:], strict=False)):
                raise ValueError(f"boundaries {list(self.boundaries)} do not increase; give each step once, in order")

    def __call__(self, config: Config, length: int) -> Schedule:
        return optax.piecewise_constant_schedule(config.peak, dict.fromkeys(config.boundaries, config.factor))


SCHEDULES: dict[str, Any] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "exponential": Exponential,
    "step": Step,
}


def make_schedule(section: Any, where: str, steps: int) -> Schedule:
    """Builds a schedule from a config section or a number.

    Args:
      section: section or number.
      where: key of the section, for error messages.
      steps: length of the run.

    Raises:
      UserError: as in `mmjax.config.build`, and if the warmup is not shorter than the schedule or an Optax schedule
        does not return finite numbers.
    """
    if isinstance(section, (int, float)) and not isinstance(section, bool):
        if not 0 <= section <= sys.float_info.max:
            raise UserError(where, f"{section!r} is out of range", "give a finite number of at least 0")
        return optax.constant_schedule(float(section))
    if not hasattr(section, "items"):
        raise UserError(where, f"{section!r} is not a schedule", "give a number, or a dict with the key 'kind'")
    kind = section.get("kind")
    if isinstance(kind, str) and kind.startswith("optax."):
        return _optax_schedule(section, where, steps)
    cls, config = choose(SCHEDULES, section, where)
    end = schedule_length(section, steps) or steps
    if config.warmup >= end:
        raise UserError(f"{where}.warmup", f"{config.warmup} is not below the {end} steps", "shorten the warmup")
    body = cls()(config, end - config.warmup)
    if not config.warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, config.peak, config.warmup), body], [config.warmup])


def schedule_length(section: Any, steps: int) -> int | None:
    """Returns the step at which a schedule of `SCHEDULES` ends, or None for numbers and for schedules without an end.

    Args:
      section: section or number, valid for `make_schedule`.
      steps: length of the run.
    """
    cls = SCHEDULES.get(section.get("kind")) if hasattr(section, "items") else None
    return (section.get("steps") or steps) if cls is not None and hasattr(cls.Config, "steps") else None


def _optax_schedule(section: Any, where: str, steps: int) -> Schedule:
    """Builds the schedule of `optax.NAME`; an argument `schedules` is a list of sections."""
    name = section["kind"].removeprefix("optax.")
    known = [name for name in dir(optax.schedules) if optax_arguments(name) and not name.startswith("inject_")]
    if name not in known:
        raise UserError(f"{where}.kind", f"Optax has no schedule {name!r}", nearest(name, known))
    options = {key: value for key, value in section.items() if key != "kind"}
    if isinstance(parts := options.get("schedules"), (list, tuple)):
        options["schedules"] = [make_schedule(part, f"{where}.schedules[{i}]", steps) for i, part in enumerate(parts)]
    schedule = call_optax(name, options, where)
    for step in (0, steps // 2, steps):
        try:
            value = np.asarray(schedule(step), np.float64)
        except Exception as error:
            problem = f"optax.{name} raises: {(str(error).splitlines() or [type(error).__name__])[0]}"
            raise UserError(where, problem, "see the Optax documentation") from error
        if value.shape or not np.isfinite(value):
            raise UserError(where, f"optax.{name} is {value} at step {step}", "check its arguments")
    return schedule


def optax_arguments(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a public Optax function, or {} if there is no such function."""
    function = getattr(optax, name, None)
    if name.startswith("_") or not callable(function) or isinstance(function, type):
        return {}
    try:
        return dict(inspect.signature(function).parameters)
    except ValueError:  # a type alias
        return {}


def call_optax(name: str, options: dict[str, Any], where: str) -> Any:
    """Calls an Optax function by name.

    Raises:
      UserError: on an unknown or missing argument, or a value that is not finite or has a wrong type.
    """
    function, known = getattr(optax, name), optax_arguments(name)
    options = {key: _with_integer_keys(value) for key, value in options.items()}
    for key in options:
        if key not in known:
            raise UserError(f"{where}.{key}", f"optax.{name} has no argument {key!r}", nearest(key, known))
        numeric = isinstance(known[key].default, float) or known[key].annotation in (float, jax.typing.ArrayLike)
        if numeric and isinstance(options[key], (str, bool, dict, list)):
            # Optax itself would fail only at the first step.
            problem = f"{options[key]!r} is a {type(options[key]).__name__}"
            raise UserError(f"{where}.{key}", problem, "give a number")
        if isinstance(options[key], float) and not math.isfinite(options[key]):
            raise UserError(f"{where}.{key}", f"{options[key]!r} is not finite", "give a finite number")
    missing = [key for key, value in known.items() if value.default is value.empty and key not in options]
    missing = [key for key in missing if known[key].kind is not inspect.Parameter.VAR_KEYWORD]
    if missing:
        raise UserError(f"{where}.{missing[0]}", "is missing", f"optax.{name} requires it")
    try:
        return function(**options)
    except Exception as error:
        problem = f"optax.{name} failed: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise UserError(where, problem, "see the Optax documentation") from error


def _with_integer_keys(value: Any) -> Any:
    """Converts `{"100": 0.1}` to `{100: 0.1}`: Optax needs integer steps; JSON and `ConfigDict` keys are strings."""
    if hasattr(value, "items") and value and all(str(key).isdecimal() for key in value):
        return {step: value[key] for step, key in sorted((int(key), key) for key in value)}
    return value
