"""Speaker splits of AV-MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.errors import UserError, nearest

SPLITS = ("train", "validation", "test")


class Speakers(NamedTuple):
    """Speakers of each split; the splits are disjoint."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def choose_speakers(
    speakers: Sequence[str],
    held_out: str | tuple[str, ...] | None = None,
    validation: str | tuple[str, ...] | None = None,
) -> Speakers:
    """Assigns speakers to splits.

    Args:
      speakers: names, with or without duplicates.
      held_out, validation: test and validation speakers; see `Avmnist.Config`.

    Raises:
      UserError: if a speaker is unknown or in two splits, or none remains for training.
    """
    names = sorted(set(speakers))

    def select(requested: str | tuple[str, ...] | None, where: str, available: list[str]) -> tuple[str, ...]:
        if requested is None:
            return tuple(available[-1:])
        requested = (requested,) if isinstance(requested, str) and requested else tuple(requested)
        for name in requested:
            if name not in names:
                raise UserError(where, f"no recordings of speaker {name!r}", nearest(name, names))
        return tuple(sorted(set(requested)))

    test_speakers = select(held_out, "data.held_out", names)
    others = [name for name in names if name not in test_speakers]
    validation_speakers = select(validation, "data.validation", others)
    overlap = sorted(set(test_speakers) & set(validation_speakers))
    if overlap:
        problem = f"speaker {overlap[0]!r} is also a test speaker"
        raise UserError("data.validation", problem, "choose a speaker that is not in data.held_out")
    train_speakers = tuple(name for name in others if name not in validation_speakers)
    if not train_speakers:
        problem = f"no speaker remains for training: all of {', '.join(map(repr, names))} are held out"
        remedy = "add recordings of other speakers, hold out fewer in data.held_out, or set data.validation to []"
        raise UserError("data.held_out", problem, remedy)
    return Speakers(train_speakers, validation_speakers, test_speakers)
