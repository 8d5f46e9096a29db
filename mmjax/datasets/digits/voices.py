"""espeak-ng voices of the spoken digits: disjoint variants per split, and ranges of accent, speed and pitch."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.data.stable_rng import choose, interpolate
from mmjax.datasets.digits import speech

# Excluded from espeak-ng's 104 variants: whispers, robots and monsters; Klatt synthesisers and other near-duplicates of
# an included variant; and variants whose words are too long, end abruptly or are hard to understand.
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

# Words per minute; espeak-ng's pitch scale, 0 to 99.
_SPEEDS = (130, 210)
_PITCHES = (25, 75)


def utterance(word: str, split: str, uniforms: Sequence[float]) -> speech.Utterance:
    """Maps four uniform draws in [0, 1) to an utterance of `word`: accent and variant of the split, speed, pitch."""
    accent, variant, speed, pitch = uniforms
    voice = f"{choose(ACCENTS[split], accent)}+{choose(VOICES[split], variant)}"
    return speech.Utterance(word, voice, round(interpolate(_SPEEDS, speed)), round(interpolate(_PITCHES, pitch)))
