"""Language identification with py3langid, a naive Bayes model of byte n-grams for 139 languages.

Texts without enough evidence, such as names, numbers and single words, are not classified.

Lui and Baldwin, langid.py: An Off-the-shelf Language Identification Tool, 2012.
"""

from __future__ import annotations

import functools
import re
from typing import Any

# A text is in an unwanted language if that language has at least this probability, and this many times the probability
# of the wanted languages together. `python benchmarks/cleaning.py --libraries` measures the choice.
_MIN_PROBABILITY = 0.3
_MIN_RATIO = 20.0
# Label of py3langid for numbers, markup and other text that is not language.
_NO_LANGUAGE = "zxx"


def supported() -> tuple[str, ...]:
    """Returns the ISO 639 codes of the supported languages, sorted. Loads the model, which takes about a second."""
    return tuple(sorted({*_identifier().labels} - {_NO_LANGUAGE}))


def detect_unwanted_language(text: str, wanted: tuple[str, ...]) -> str | None:
    """Identifies the language of a text that is in none of the wanted languages.

    Args:
      text: text to classify.
      wanted: ISO 639 codes, see `supported`.

    Returns:
      An ISO 639 code; None if the text is in a wanted language or the evidence is insufficient.
    """
    if _is_name(text):
        return None
    probabilities = dict(_identifier().rank(text))
    wanted_probability = sum(probabilities[code] for code in wanted)
    code = max((code for code in probabilities if code not in wanted), key=probabilities.__getitem__)
    probability = probabilities[code]
    if code == _NO_LANGUAGE or probability < _MIN_PROBABILITY or probability < _MIN_RATIO * wanted_probability:
        return None
    return code


def _is_name(text: str) -> bool:
    """Returns True if all words of more than three letters are capitalized, as in "Rio de Janeiro"."""
    words = [word for word in re.findall(r"[^\W\d_]+", text) if len(word) > 3]
    return not text.isupper() and all(word[0].isupper() for word in words) and any(map(str.isupper, text))


@functools.cache
def _identifier() -> Any:
    """Loads the model of py3langid."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
