"""Speakers and splits of AV-MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.errors import UserError, nearest

SPLITS = ("train", "validation", "test")


class Speakers(NamedTuple):
    """Who speaks in each split."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def choose_speakers(
    everybody: Sequence[str],
    held_out: str | tuple[str, ...] | None = None,
    validation: str | tuple[str, ...] | None = None,
) -> Speakers:
    """Shares the speakers out, as `Avmnist.Config` says.

    Raises:
      UserError: if a speaker is unknown or in two splits, or nobody is left to train on.
    """
    names = sorted(set(everybody))

    def chosen(asked: str | tuple[str, ...] | None, where: str, available: list[str]) -> tuple[str, ...]:
        if asked is None:
            return tuple(available[-1:])
        asked = (asked,) if isinstance(asked, str) and asked else tuple(asked)
        for name in asked:
            if name not in names:
                raise UserError(where, f"there are no recordings of a speaker {name!r}", nearest(name, names))
        return tuple(sorted(set(asked)))

    test = chosen(held_out, "data.held_out", names)
    others = [name for name in names if name not in test]
    held_back = chosen(validation, "data.validation", others)
    both = sorted(set(test) & set(held_back))
    if both:
        problem = f"{both[0]!r} is held out for test too"
        raise UserError("data.validation", problem, "choose on another speaker, never on one of test")
    train = tuple(name for name in others if name not in held_back)
    if not train:
        problem = f"of {', '.join(map(repr, names))} nobody is left to train on"
        remedy = "add recordings of others, name fewer in data.held_out, or set data.validation to []"
        raise UserError("data.held_out", problem, remedy)
    return Speakers(train, held_back, test)
