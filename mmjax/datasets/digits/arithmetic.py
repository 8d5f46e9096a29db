"""Arithmetic task: the image shows digit a, the audio says digit b, the text names an operation; predict the result.

Each input reveals one of the latents (a, b, operation), and the answer needs all three. A model that ignores an input
cannot exceed the accuracy that `ceilings` computes for the other inputs.
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
    """Operation on the image digit a and the audio digit b, and the sentences that ask for it."""

    compute: Callable[[int, int], int]
    phrasings: tuple[str, ...]


# Each phrasing fits into 32 bytes with an end token and identifies its operation unambiguously.
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

# Sentences that name one digit, by its word or its numeral.
DIGIT_PHRASINGS = ("{word}", "the digit {word}", "this is a {word}", "number {word}", "it says {word}", "digit {digit}")


@dataclasses.dataclass(frozen=True)
class Question:
    """Latents of one example: image digit a, audio digit b, operation name, and index of the phrasing."""

    a: int
    b: int
    operation: str
    phrasing: int

    @property
    def text(self) -> str:
        """Sentence that asks for the operation."""
        return OPERATIONS[self.operation].phrasings[self.phrasing]

    @property
    def answer(self) -> str:
        """Class name of the result."""
        return answer(self.a, self.b, self.operation)


def answer(a: int, b: int, operation: str) -> str:
    """Returns the class name of the result, for example "-3"."""
    return str(OPERATIONS[operation].compute(a, b))


ANSWERS: tuple[str, ...] = tuple(
    sorted({answer(a, b, name) for a in range(10) for b in range(10) for name in OPERATIONS}, key=int)
)


def balanced_questions(copies: int) -> list[Question]:
    """Returns every (a, b, operation) `copies` times, for exactly balanced splits. Phrasings rotate."""
    combinations = list(itertools.product(range(10), range(10), OPERATIONS))
    return [
        # Offset by a + b, so that all phrasings are equally frequent even with few copies.
        Question(a, b, name, (copy + a + b) % len(OPERATIONS[name].phrasings))
        for copy in range(copies)
        for a, b, name in combinations
    ]


def digit_sentence(digit: int, phrasing: int) -> str:
    """Returns a sentence that names one digit, for the matched task."""
    return DIGIT_PHRASINGS[phrasing % len(DIGIT_PHRASINGS)].format(word=WORDS[digit], digit=digit)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Entry of a joint distribution: {input: revealed latent}, the answer, and their joint probability."""

    revealed: Mapping[str, Hashable]
    answer: Hashable
    probability: fractions.Fraction


def arithmetic_outcomes() -> list[Outcome]:
    """Returns the joint distribution of the arithmetic task: 600 equally probable combinations."""
    questions = balanced_questions(1)
    probability = fractions.Fraction(1, len(questions))
    return [Outcome({"image": q.a, "audio": q.b, "text": q.operation}, q.answer, probability) for q in questions]


def matched_outcomes() -> list[Outcome]:
    """Returns the joint distribution of the matched task: every input reveals the same digit."""
    return [Outcome({"image": d, "audio": d, "text": d}, d, fractions.Fraction(1, 10)) for d in range(10)]


def ceilings(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Computes the Bayes-optimal accuracy for each non-empty subset of the inputs.

    The Bayes-optimal classifier predicts the most probable answer given its observation. Its accuracy is the sum over
    observations of the maximum joint probability over answers. Fractions avoid rounding errors.

    Returns:
      {subset: accuracy in [0, 1]}; a subset is its input names in alphabetical order, joined by "+".
    """
    outcomes = list(outcomes)
    names = sorted(outcomes[0].revealed)
    accuracies = {}
    for count in range(1, len(names) + 1):
        for subset in itertools.combinations(names, count):
            joint: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
            for outcome in outcomes:
                observation = tuple(outcome.revealed[name] for name in subset)
                joint[observation][outcome.answer] += outcome.probability  # type: ignore[assignment]
            accuracies["+".join(subset)] = float(sum(max(answers.values()) for answers in joint.values()))
    return accuracies
