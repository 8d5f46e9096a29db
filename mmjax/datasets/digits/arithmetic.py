"""The arithmetic task: a digit that is seen, a digit that is heard, and a sentence that says what to do with them.

Image, audio and text each reveal one of three latents (a, b, operation), and the answer needs all of them, so a model
that ignores a modality is found out: `ceilings` computes the best accuracy that each subset of the inputs allows.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class Operation:
    """What to do with the digit that is seen, a, and the digit that is heard, b, and how people ask for it."""

    compute: Callable[[int, int], int]
    phrasings: tuple[str, ...]


# Each phrasing fits 32 bytes with an end token, and says by itself which operation is meant.
OPERATIONS: dict[str, Operation] = {
    "plus": Operation(
        lambda a, b: a + b,
        ("what is the sum?", "add the two digits", "image plus audio", "how much are they together?"),
    ),
    "minus": Operation(
        lambda a, b: a - b,
        ("image minus audio", "take the sound from the picture", "subtract what you hear", "the first less the second"),
    ),
    "times": Operation(
        lambda a, b: a * b,
        ("what is the product?", "multiply the two digits", "image times audio", "the one multiplied by the other"),
    ),
    "larger": Operation(
        max,
        ("which digit is larger?", "the maximum of both", "name the bigger one", "what is the greater digit?"),
    ),
    "smaller": Operation(
        min,
        ("which digit is smaller?", "the minimum of both", "name the lesser one", "what is the lower digit?"),
    ),
    "distance": Operation(
        lambda a, b: abs(a - b),
        ("how far apart are they?", "the distance between them", "their absolute difference", "the gap between both"),
    ),
}

# How people name one digit, by its word or its numeral.
DIGIT_PHRASINGS = ("{word}", "the digit {word}", "this is a {word}", "number {word}", "it says {word}", "digit {digit}")


@dataclasses.dataclass(frozen=True)
class Question:
    """One example's latents: digits a (seen) and b (heard), the operation's name, and which phrasing asks for it."""

    a: int
    b: int
    operation: str
    phrasing: int

    @property
    def text(self) -> str:
        return OPERATIONS[self.operation].phrasings[self.phrasing]

    @property
    def answer(self) -> str:
        return answer(self.a, self.b, self.operation)


def answer(a: int, b: int, operation: str) -> str:
    """The answer's class name, for example "-3"."""
    return str(OPERATIONS[operation].compute(a, b))


ANSWERS: tuple[str, ...] = tuple(
    sorted({answer(a, b, name) for a in range(10) for b in range(10) for name in OPERATIONS}, key=int)
)


def balanced_questions(copies: int) -> list[Question]:
    """Every (a, b, operation) `copies` times, so that a split has no sampling error in them; phrasings take turns."""
    combinations = list(itertools.product(range(10), range(10), OPERATIONS))
    return [
        # Consecutive combinations begin with other phrasings, so that few copies still show all of them equally often.
        Question(a, b, name, (copy + a + b) % len(OPERATIONS[name].phrasings))
        for copy in range(copies)
        for a, b, name in combinations
    ]


def digit_sentence(digit: int, phrasing: int) -> str:
    """A sentence that names one digit, for the matched task."""
    return DIGIT_PHRASINGS[phrasing % len(DIGIT_PHRASINGS)].format(word=WORDS[digit], digit=digit)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of a joint distribution: what each input reveals, the answer, and how probable they are together."""

    revealed: Mapping[str, Hashable]
    answer: Hashable
    probability: fractions.Fraction


def arithmetic_outcomes() -> list[Outcome]:
    """The joint distribution of the arithmetic task: all 600 combinations equally probable."""
    questions = balanced_questions(1)
    share = fractions.Fraction(1, len(questions))
    return [Outcome({"image": q.a, "audio": q.b, "text": q.operation}, q.answer, share) for q in questions]


def matched_outcomes() -> list[Outcome]:
    """The joint distribution of the matched task: every input shows the same digit."""
    return [Outcome({"image": d, "audio": d, "text": d}, d, fractions.Fraction(1, 10)) for d in range(10)]


def ceilings(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """The accuracy of the best possible predictor that sees only some inputs, for each non-empty subset of them.

    The best predictor answers what is most probable given what it sees, so its accuracy is the sum over observations of
    the largest joint probability of an answer. Fractions keep it exact: 1.0 is 1.0.

    Returns:
      {subset: accuracy in [0, 1]}, a subset being its inputs' names in alphabetical order joined by "+".
    """
    outcomes = list(outcomes)
    names = sorted(outcomes[0].revealed)
    result = {}
    for count in range(1, len(names) + 1):
        for subset in itertools.combinations(names, count):
            joint: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
            for outcome in outcomes:
                seen = tuple(outcome.revealed[name] for name in subset)
                joint[seen][outcome.answer] += outcome.probability  # type: ignore[assignment]
            result["+".join(subset)] = float(sum(max(answers.values()) for answers in joint.values()))
    return result
