"""The voices of espeak-ng that say the digits: which are for training, and what varies from word to word."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.data.draws import between, pick
from mmjax.datasets.digits import speech

# Left out of espeak-ng's 104 variants: whispers, robots and monsters; Klatt synthesisers and others that differ from a
# kept one by hardly anything measurable; and those whose words are too long, end abruptly or are poorly understood.
VOICES = {
    "train": (  # noqa: SIM905 a list of 42 strings is harder to read
        "Alex Andy Denis Gene Henrique Lee Mario Michael Reed adam announcer antonio aunty boris croak ed edward "
        "f2 f3 f5 gustave iven john linda m1 m2 m5 m6 m7 m8 marcelo max michel mike2 norbert paul pedro quincy "
        "rob robert sandro shelby"
    ).split(),
    "validation": ["Jacky", "f1", "grandma", "ian", "m3", "victor"],
    "test": ["Annie", "Mike", "Nguyen", "david", "f4", "grandpa", "m4", "pablo", "steph", "travis"],
}
VOICES["accents"] = VOICES["test"]

SPLITS = tuple(VOICES)

_FAMILIAR = ["en", "en-us", "en-us-nyc"]
ACCENTS = {
    "train": _FAMILIAR,
    "validation": _FAMILIAR,
    "test": _FAMILIAR,
    "accents": ["en-gb-x-rp", "en-029", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd"],
}

_SPEEDS = (130, 210)
_PITCHES = (25, 75)


def utterance(word: str, split: str, drawn: Sequence[float]) -> speech.Utterance:
    """The word in one of a split's voices; four numbers in [0, 1) say which, how fast and how high."""
    accent, variant, speed, pitch = drawn
    voice = f"{pick(ACCENTS[split], accent)}+{pick(VOICES[split], variant)}"
    return speech.Utterance(word, voice, round(between(_SPEEDS, speed)), round(between(_PITCHES, pitch)))
