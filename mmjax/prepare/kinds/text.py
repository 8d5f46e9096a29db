"""Text: strings in a manifest, or UTF-8 text files."""

from __future__ import annotations

import dataclasses
import html
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import numpy as np

from mmjax.config import Formerly, NonNegative, Within
from mmjax.errors import nearest
from mmjax.modalities.names import printable
from mmjax.prepare import languages, templates
from mmjax.prepare.kinds.base import File, Kind, Unreadable

# MinHash: characters per shingle, number of hash functions, and their seed.
_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 1
# Maximum characters used for near duplicates and features, and for the boilerplate and language checks.
_MAX_COMPARED = 20_000
_MAX_CHECKED = 2_000
# Maximum size of a text in bytes.
_MAX_BYTES = 2**24
# Buckets of the hashed character n-grams in `features`.
_FEATURES = 1024

BOILERPLATE = (
    # Placeholders.
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
    # Default file names of cameras and screenshots, and bare URLs.
    r"(img|dsc|dscn|dscf|pict?|image|photo)[-_ ]?\d+",
    r"screen ?shot\W*\d[\d\W]*((at|um|à)\W+[\d\W]+)?([ap]m)?(\.\w+)?",
    r"(https?://|www\.)\S+",
    # Web page chrome, with only a few words around it, since captions may contain these words too.
    r"\s*(\S+\s+){0,4}[^\w\s]*(click here|read more|sign up|login|(log|sign) in (to|here|now|with)|subscribe|"
    r"follow us|buy now|share this (page|post|article|story|link)|share (on|via) (facebook|twitter|whatsapp|pinterest)|"
    r"add to cart|view full size|click to enlarge)\b\S*(\s+\S+){0,8}\s*",
    r"\s*(\S+\s+){0,8}[^\w\s]*(all rights reserved|terms (of (use|service)|and conditions)|privacy policy|"
    r"cookie (policy|settings))\b\S*(\s+\S+){0,8}\s*",
    r".*\b(we|this (site|website)) uses? cookies\b.*",
    r".*\b(enable|requires?|turn on) javascript\b.*",
)
"""Regular expressions for texts without content. A match must cover the whole text; case is ignored."""

# At most four words, since a sentence may end with the name of a file.
_FILE_NAME = re.compile(
    r"(\S+[ ]){0,3}\S*[^\s.]\.(jpe?g|png|gif|webp|bmp|tiff?|wav|mp3|flac|ogg|mp4|webm|npy|csv|txt|md|caption|pdf)",
    re.IGNORECASE,
)


class TextKind(Kind):
    """A text, stored unchanged."""

    distinctive = False
    tokenized = True
    inline = True
    fault_names = ("empty", "long", "boilerplate", "language", "file_name")
    value_faults = ("file_name",)
    suffixes = (".txt", ".md", ".caption")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Thresholds of the text checks.

        Attributes:
          shortest, longest: minimum and maximum length in characters, without leading and trailing white space; 0 means
            no limit.
          language: allowed languages as ISO 639 codes, such as ["en", "de"]; texts detected as another language are
            faulty. [] allows all.
          boilerplate: regular expressions, by default `mmjax.prepare.kinds.text.BOILERPLATE`; a text that fully matches
            one of them is faulty. Case is ignored.
          similarity: Jaccard similarity of the sets of 5-character shingles at or above which two texts are near
            duplicates, unless they differ in a number or in the variable part of a template; see
            `mmjax.prepare.templates`.
        """

        shortest: NonNegative = 1
        longest: NonNegative = 0
        language: tuple[str, ...] = ()
        boilerplate: tuple[str, ...] = BOILERPLATE
        similarity: Annotated[float, Within(0, 1), Formerly("alike")] = 0.7

        def __post_init__(self):
            for code in self.language:
                if code not in languages.supported():
                    raise ValueError(f"unknown language {code!r}; {nearest(code, languages.supported())}")
            for pattern in self.boilerplate:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{pattern!r} is not a valid regular expression: {error}; correct it") from None

    def __init__(self, config: Any = None, reduce: Any = None):
        super().__init__(config, reduce)
        self._boilerplate = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in self.config.boilerplate]

    def is_path(self, value: str) -> bool:
        return value.lower().endswith(self.suffixes) and "\n" not in value and (self.paths or len(value.split()) == 1)

    def decode(self, value: Any) -> str:
        value = value.data if isinstance(value, File) else value
        if isinstance(value, (bytes, str)) and len(value) > _MAX_BYTES:
            raise Unreadable(f"{len(value):,} characters or bytes are more than {_MAX_BYTES:,}")
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise Unreadable(f"not UTF-8: {error}") from None
        if not isinstance(value, str):
            return str(value)
        if printable(value) != value:
            raise Unreadable("not valid Unicode: it has lone surrogates")
        return value

    def measure(self, raw: str) -> dict[str, float | int | str]:
        return {
            "characters": len(raw.strip()),
            "words": len(raw.split()),
            "begins": raw.strip()[:_MAX_CHECKED],
            "bytes": len(raw.encode("utf-8", "replace")),
        }

    def faults(self, measured: Mapping[str, Any]) -> dict[str, str]:
        length, text = measured["characters"], measured["begins"]
        if not any(letter.isalnum() for letter in text) or length < self.config.shortest:
            reason = f"{length} characters" if length < self.config.shortest else "no letters or digits"
            return {"empty": reason}
        if _FILE_NAME.fullmatch(text.strip()):
            return {"file_name": f"{text[:60]!r} is the name of a file"}
        faults = {}
        if self.config.longest and length > self.config.longest:
            faults["long"] = f"{length:,} characters"
        if any(pattern.fullmatch(text) for pattern in self._boilerplate):
            faults["boilerplate"] = f"{text[:60]!r} has no content"
        if self.config.language and (language := languages.detect_unwanted_language(text, self.config.language)):
            faults["language"] = f"language is probably {language!r}"
        return faults

    def signature(self, raw: str) -> bytes | None:
        return _normalize(raw)[:_MAX_COMPARED].encode() or None

    def hashes(self, signature: bytes) -> np.ndarray:
        """MinHash signature uint32 [128] (Broder, On the Resemblance and Containment of Documents, 1997)."""
        import rensa

        minhash = rensa.RMinHash(_PERMUTATIONS, _SEED)
        minhash.update(list(_shingles(signature)))
        return np.asarray(minhash.digest(), np.uint32)

    def candidates(self, hashes: np.ndarray) -> np.ndarray:
        """Pairs that collide in one of 32 bands of 4 hashes (LSH): 99.98 % of pairs at similarity 0.7, 23 % at 0.3.

        Own code instead of `rensa.RMinHashLSH`, which has the same recall and speed on different texts, but proposes
        all pairs of equal texts: a million among 1,000 rows, instead of 1,997.
        """
        candidates = [np.zeros((0, 2), np.int64)]
        for band in np.split(hashes, _PERMUTATIONS // 4, axis=1):
            _, group = np.unique(band, axis=0, return_inverse=True)
            order = np.argsort(group, kind="stable")
            same = np.flatnonzero(np.diff(group[order]) == 0)
            # Pair each row with the previous and the first of its group: linear, not quadratic, in the group's size.
            first = order[np.searchsorted(group[order], group[order])]
            candidates += [
                np.stack([order[same], order[same + 1]], axis=1),
                np.stack([first[same], order[same + 1]], axis=1),
            ]
        pairs = np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    def similarity(self, a: bytes, b: bytes) -> float:
        first, second = _shingles(a), _shingles(b)
        return len(first & second) / len(first | second)

    def pair_filter(self, pairs: Iterable[tuple[bytes, bytes]]) -> Callable[[bytes, bytes], bool]:
        learned = templates.Templates((a.decode(), b.decode()) for a, b in pairs)
        return lambda a, b: learned.are_copies(a.decode(), b.decode())

    def features(self, raw: str) -> np.ndarray:
        values = np.zeros(_FEATURES, np.float32)
        text = f" {_normalize(raw)[:_MAX_COMPARED]} "
        for size in (2, 3, 4):
            for start in range(len(text) - size + 1):
                values[zlib.crc32(text[start : start + size].encode()) % _FEATURES] += 1
        return np.sqrt(values) / max(1.0, float(np.sqrt(values.sum())))

    def tfds_feature(self, tfds: Any, summary: Mapping[str, Any]) -> Any:
        return tfds.features.Text()

    def stored(self, raw: str, summary: Mapping[str, Any]) -> str:
        return raw

    def placeholder(self, summary: Mapping[str, Any]) -> str:
        return ""

    def restore(self, stored: bytes | str) -> str:
        return stored if isinstance(stored, str) else stored.decode()

    def show(self, raw: str) -> str:
        return f"<q>{html.escape(raw if len(raw) <= 400 else raw[:400] + ' …')}</q>"


def _normalize(text: str) -> str:
    """Normalizes to NFKC, casefolded words separated by single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", text))


def _shingles(signature: bytes) -> set[str]:
    text = signature.decode()
    return {text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))}
