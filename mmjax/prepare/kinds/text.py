"""Text: what stands in a manifest, or in a text file in UTF-8."""

from __future__ import annotations

import dataclasses
import functools
import html
import re
import unicodedata
import zlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import NonNegative, Within
from mmjax.errors import nearest
from mmjax.prepare import languages
from mmjax.prepare.kinds.base import File, Kind, Unreadable

_SHINGLE = 5
_PERMUTATIONS = 128
_SKETCHED = 20_000
_JUDGED = 2_000
_FEATURES = 1024

BOILERPLATE = (
    # What stands where a text should.
    r"(n/?a|none|null|nan|undefined|unknown|untitled|placeholder|tbd|test)\W*\d*",
    r"todo\b\S*(\s+\S+){0,4}\s*",
    r"\W*no (image|picture|photo|caption|description|title|(alt )?text)( (available|provided|given|found))?\W*",
    r"(insert|add|enter|type) (a |the |your )?(caption|description|title|(alt )?text)( here)?\W*",
    r"(caption|description|title|text) goes here\W*|alt text\W*|\[object object\]|#(ref|value|null|div/0)!|#name\?",
    r"([a-z])\1{2,}|(asdf|qwert)\w*|loading\W*|advertisement\W*|stock (photo|image)s?\W*",
    r"[\[(<]\s*(image|picture|photo|figure|video|audio|caption)\s*[\])>]|(<[^<>]{1,200}>\s*)+",
    r"lorem ipsum.*",
    r"(image|picture|photo|file|page|content) (is )?(not (found|available)|unavailable)\S*(\s+\S+){0,3}\s*",
    r"(image|picture|photo|file|page|content) (is )?missing\W*",
    r"(error )?(403|404|50[0234])(\W+(error|page|not found|forbidden|bad gateway|service unavailable)\b)*\W*",
    r".*\bpage not found\b.*",
    # A file's name, or an address, and nothing else.
    r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|wav|mp3|flac|ogg|mp4|txt)",
    r"(img|dsc|dscn|dscf|pict?|image|photo)[-_ ]?\d+",
    r"screen ?shot\W*\d[\d\W]*((at|um|à)\W+[\d\W]+)?([ap]m)?(\.\w+)?",
    r"(https?://|www\.)\S+",
    # What stands on pages, and not in their text: with few words around it, since captions may have such words too.
    r"\s*(\S+\s+){0,4}[^\w\s]*(click here|read more|sign up|login|(log|sign) in (to|here|now|with)|subscribe|"
    r"follow us|buy now|share this (page|post|article|story|link)|share (on|via) (facebook|twitter|whatsapp|pinterest)|"
    r"add to cart|view full size|click to enlarge)\b\S*(\s+\S+){0,8}\s*",
    r"\s*(\S+\s+){0,8}[^\w\s]*(all rights reserved|terms (of (use|service)|and conditions)|privacy policy|"
    r"cookie (policy|settings))\b\S*(\s+\S+){0,8}\s*",
    r".*\b(we|this (site|website)) uses? cookies\b.*",
    r".*\b(enable|requires?|turn on) javascript\b.*",
)
"""Regular expressions, of which one fits the whole of a text that says nothing; upper and lower case are one."""


class TextKind(Kind):
    """A text, stored as it is."""

    distinctive = False
    tokenized = True
    fault_names = ("empty", "long", "boilerplate", "language")
    suffixes = (".txt", ".md", ".caption")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """When a text is faulty, and when two are near duplicates.

        Attributes:
          shortest, longest: in characters, white space at the ends not counted; 0 for any length.
          language: codes of ISO 639-1, such as ["en", "de"]; texts that are recognised as another are faulty. [] for
            any.
          boilerplate: regular expressions; a text that one of them fits as a whole is faulty. Case does not matter. By
            default `mmjax.prepare.kinds.text.BOILERPLATE`.
          alike: share of the sequences of five characters that two texts have in common, of those of either.
        """

        shortest: NonNegative = 1
        longest: NonNegative = 0
        language: tuple[str, ...] = ()
        boilerplate: tuple[str, ...] = BOILERPLATE
        similarity: Annotated[float, Within(0, 1)] = 0.7

        def __post_init__(self):
            for code in self.language:
                if code not in languages.LANGUAGES:
                    raise ValueError(f"language {code!r} is not known; {nearest(code, languages.LANGUAGES)}")
            for pattern in self.boilerplate:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}; mend it") from None

    def __init__(self, config: Any = None, reduce: Any = None):
        super().__init__(config, reduce)
        self._boilerplate = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in self.config.boilerplate]

    def is_path(self, value: str) -> bool:
        return value.lower().endswith(self.suffixes) and len(value.split()) == 1

    def decode(self, value: Any) -> str:
        value = value.data if isinstance(value, File) else value
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise Unreadable(f"not UTF-8: {error}") from None
        if not isinstance(value, str):
            return str(value)
        return value

    def measure(self, raw: str) -> dict[str, float | int | str]:
        return {
            "characters": len(raw.strip()),
            "words": len(raw.split()),
            "begins": raw.strip()[:_JUDGED],
            "bytes": len(raw.encode("utf-8", "replace")),
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        length, text = measured["characters"], measured["begins"]
        if not any(letter.isalnum() for letter in text) or length < self.config.shortest:
            return {"empty": f"it has {length} characters" if length < self.config.shortest else "it says nothing"}
        found = {}
        if self.config.longest and length > self.config.longest:
            found["long"] = f"it has {length:,} characters"
        if any(pattern.fullmatch(text) for pattern in self._boilerplate):
            found["boilerplate"] = f"{text[:60]!r} says nothing"
        if self.config.language and (language := languages.detect_unwanted_language(text, self.config.language)):
            found["language"] = f"it seems to be {language!r}"
        return found

    def signature(self, raw: str) -> bytes | None:
        return _normal(raw)[:_SKETCHED].encode() or None

    def hashes(self, signature: bytes) -> np.ndarray:
        """MinHash (Broder, On the Resemblance and Containment of Documents, 1997)."""
        shingles = np.asarray([zlib.crc32(shingle.encode()) for shingle in _shingles(signature)], np.uint64)
        multipliers, offsets = _permutations()
        # Modulo 2^64 by overflow; the upper half of the bits is well mixed.
        return ((multipliers[:, None] * shingles + offsets[:, None]) >> np.uint64(32)).min(axis=1)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """Those that are equal in one of 32 bands of four hashes: of texts that share 0.7, 0.9999; of 0.3, 0.23."""
        found = [np.zeros((0, 2), np.int64)]
        for band in np.split(hashes, _PERMUTATIONS // 4, axis=1):
            _, group = np.unique(band, axis=0, return_inverse=True)
            order = np.argsort(group, kind="stable")
            same = np.flatnonzero(np.diff(group[order]) == 0)
            # A chain through the group is enough, and its first, so that a thousand copies are no million pairs.
            first = order[np.searchsorted(group[order], group[order])]
            found += [
                np.stack([order[same], order[same + 1]], axis=1),
                np.stack([first[same], order[same + 1]], axis=1),
            ]
        pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def similarity(self, one: bytes, other: bytes) -> float:
        first, second = _shingles(one), _shingles(other)
        return len(first & second) / len(first | second)

    def features(self, raw: str) -> np.ndarray:
        values = np.zeros(_FEATURES, np.float32)
        text = f" {_normal(raw)[:_SKETCHED]} "
        for size in (2, 3, 4):
            for start in range(len(text) - size + 1):
                values[zlib.crc32(text[start : start + size].encode()) % _FEATURES] += 1
        return np.sqrt(values) / max(1.0, float(np.sqrt(values.sum())))

    def feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Text()

    def stored(self, raw: str, summary: Mapping[str, Any]) -> str:
        return raw

    def placeholder(self, summary: Mapping[str, Any]) -> str:
        return ""

    def restore(self, stored: bytes | str) -> str:
        return stored if isinstance(stored, str) else stored.decode()

    def show(self, raw: str) -> str:
        return f"<q>{html.escape(raw if len(raw) <= 400 else raw[:400] + ' …')}</q>"


def _normal(text: str) -> str:
    """Letters and digits in lower case, parted by single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", text))


def _shingles(signature: bytes) -> set[str]:
    text = signature.decode()
    return {text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))}


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.Philox(key=[1, 2]).random_raw(2 * _PERMUTATIONS)
    return drawn[:_PERMUTATIONS] | np.uint64(1), drawn[_PERMUTATIONS:]
