"""Schedules: numbers that depend on the step, for learning rates and for the weights of tasks.

A config names one by `kind`, from `SCHEDULES` or "optax.NAME" for any schedule of Optax with that one's arguments; a
plain number is constant. Each starts with `warmup` steps in which it grows linearly from 0 to `peak`.
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
    """What all schedules have.

    Attributes:
      peak: the value after the warmup.
      warmup: steps from 0 to `peak`.
      steps: the step at which `end` is reached; the run's last step by default.
      end: the value there and afterwards.
    """

    peak: Annotated[float, AtLeast(0.0)] = 1.0
    warmup: NonNegative = 0
    steps: Count | None = None
    end: Annotated[float, AtLeast(0.0)] = 0.0


class Constant:
    """`peak` after the warmup."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        return optax.constant_schedule(config.peak)


class Cosine:
    """Half a cosine from `peak` to `end` (Loshchilov and Hutter, SGDR, 2017)."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        alpha = config.end / config.peak if config.peak else 0.0
        return optax.cosine_decay_schedule(config.peak, length, alpha=alpha)


class Linear:
    """A line from `peak` to `end`."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        return optax.linear_schedule(config.peak, config.end, length)


class Exponential:
    """A constant factor a step from `peak` to `end`, which is 1 % of `peak` by default."""

    Config = ScheduleConfig

    def __call__(self, config: ScheduleConfig, length: int) -> Schedule:
        rate = (config.end / config.peak) if config.end and config.peak else 0.01
        return optax.exponential_decay(config.peak, length, rate, end_value=config.peak * rate)


class Step:
    """Multiplies by `factor` at each of the `boundaries`, which are steps after the warmup."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(ScheduleConfig):
        """Where and by how much.

        Attributes:
          boundaries: steps after the warmup.
          factor: what the value is multiplied by at each of them.
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
    """Makes a schedule from a section of the config, or from a number.

    Args:
      steps: length of the run.

    Raises:
      UserError: as `mmjax.config.build` does, and where the warmup is longer than the schedule.
    """
    if isinstance(section, (int, float)) and not isinstance(section, bool):
        if not 0 <= section < math.inf:
            raise UserError(where, f"{section!r} is out of range", "give a finite number that is not negative")
        return optax.constant_schedule(float(section))
    if not hasattr(section, "items"):
        raise UserError(where, f"{section!r} is no schedule", "give a number, or a dict with the key 'kind'")
    kind = section.get("kind")
    if isinstance(kind, str) and kind.startswith("optax."):
        options = {key: value for key, value in section.items() if key != "kind"}
        return call_optax(kind.removeprefix("optax."), options, where)
    cls, config = choose(SCHEDULES, section, where)
    end = config.steps or steps
    if config.warmup >= end:
        raise UserError(f"{where}.warmup", f"{config.warmup} is not below the {end} steps", "make the warmup shorter")
    body = cls()(config, end - config.warmup)
    if not config.warmup:
        return body
    return optax.join_schedules([optax.linear_schedule(0.0, config.peak, config.warmup), body], [config.warmup])


def call_optax(name: str, options: dict[str, Any], where: str) -> Any:
    """Calls a public function of Optax by name; a misspelt name or argument is the user's error."""
    function = getattr(optax, name, None)
    if not callable(function):
        raise UserError(where, f"Optax has no {name!r}", nearest(name, [n for n in dir(optax) if n[0] != "_"]))
    known = inspect.signature(function).parameters
    for key in options:
        if key not in known:
            raise UserError(f"{where}.{key}", f"optax.{name} has no argument {key!r}", nearest(key, known))
        number = isinstance(known[key].default, float) or known[key].annotation in (float, jax.typing.ArrayLike)
        if number and isinstance(options[key], (str, bool, dict, list)):
            # Optax would not look at it before the first step.
            kind = type(options[key]).__name__
            raise UserError(f"{where}.{key}", f"{options[key]!r} is a {kind}", "give a number")
        if isinstance(options[key], float) and not math.isfinite(options[key]):
            raise UserError(f"{where}.{key}", f"{options[key]!r} is not finite", "give a finite number")
    missing = [key for key, value in known.items() if value.default is value.empty and key not in options]
    missing = [key for key in missing if known[key].kind is not inspect.Parameter.VAR_KEYWORD]
    if missing:
        raise UserError(f"{where}.{missing[0]}", "is missing", f"optax.{name} needs it")
    try:
        return function(**options)
    except (TypeError, ValueError) as error:
        raise UserError(where, f"optax.{name} refuses: {error}", "see the documentation of Optax") from error
