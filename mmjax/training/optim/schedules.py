"""Schedules of the learning rate and of task weights.

A config gives a number (constant), or a section whose `kind` is a key of `SCHEDULES`, or "optax.NAME" for any Optax
schedule with its arguments. Schedules in `SCHEDULES` start with a linear warmup from 0 to `peak`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax

from mmjax.config import AtLeast, Count, NonNegative, choose
from mmjax.errors import UserError, nearest

Schedule = Callable[[Any], jax.Array | float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Options common to all schedules.

    Attributes:
      peak: value after the warmup.
      warmup: steps of linear warmup from 0 to `peak`.
      steps: step at which `end` is reached; defaults to the last step of the run.
      end: final value.
    """

    peak: Annotated[float, AtLeast(0.0)] = 1.0
    warmup: NonNegative = 0
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

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        alpha = config.end / config.peak if config.peak else 0.0
        return optax.cosine_decay_schedule(config.peak, length, alpha=alpha)


class Linear:
    """Linear decay from `peak` to `end`."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        return optax.linear_schedule(config.peak, config.end, length)


class Exponential:
    """Exponential decay from `peak` to `end`, or to 1 % of `peak` if `end` is 0."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        rate = (config.end / config.peak) if config.end and config.peak else 0.01
        return optax.exponential_decay(config.peak, length, rate, end_value=config.peak * rate)


class Step:
    """Step decay: multiplies by `factor` at each of the `boundaries`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ScheduleConfig):
        """Options of `Step`.

        Attributes:
          boundaries: steps of the decay, counted from the end of the warmup.
          factor: multiplier at each boundary.
        """

        boundaries: tuple[Count, ...] = ()
        factor: Annotated[float, AtLeast(0.0)] = 0.1

    def __call__(self, config: Config, length: int) -> Schedule:
        return optax.piecewise_constant_schedule(config.peak, dict.fromkeys(config.boundaries, config.factor))


SCHEDULES = {
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
      UserError: like `mmjax.config.build`, and if the warmup is not shorter than the schedule.
    """
    if isinstance(section, (int, float)) and not isinstance(section, bool):
        if not 0 <= section < math.inf:
            raise UserError(where, f"{section!r} is out of range", "give a finite number of at least 0")
        return optax.constant_schedule(float(section))
    if not hasattr(section, "items"):
        raise UserError(where, f"{section!r} is not a schedule", "give a number, or a dict with the key 'kind'")
    kind = section.get("kind")
    if isinstance(kind, str) and kind.startswith("optax."):
        options = {key: value for key, value in section.items() if key != "kind"}
        return call_optax(kind.removeprefix("optax."), options, where)
    cls, config = choose(SCHEDULES, section, where)
    end = config.steps or steps
    if config.warmup >= end:
        raise UserError(f"{where}.warmup", f"{config.warmup} is not below the {end} steps", "shorten the warmup")
    body = cls()(config, end - config.warmup)
    if not config.warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, config.peak, config.warmup), body], [config.warmup])


def call_optax(name: str, options: dict[str, Any], where: str) -> Any:
    """Calls a public Optax function by name.

    Raises:
      UserError: on an unknown name, an unknown or missing argument, or a value that is not finite or has a wrong type.
    """
    function = getattr(optax, name, None)
    if not callable(function):
        raise UserError(where, f"Optax has no {name!r}", nearest(name, [n for n in dir(optax) if n[0] != "_"]))
    known = inspect.signature(function).parameters
    for key in options:
        if key not in known:
            raise UserError(f"{where}.{key}", f"optax.{name} has no argument {key!r}", nearest(key, known))
        numeric = isinstance(known[key].default, float) or known[key].annotation in (float, jax.typing.ArrayLike)
        if numeric and isinstance(options[key], (str, bool, dict, list)):
            # Optax would fail at the first step only.
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
    except (TypeError, ValueError) as error:
        raise UserError(where, f"optax.{name} failed: {error}", "see the Optax documentation") from error
