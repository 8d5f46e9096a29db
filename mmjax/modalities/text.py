"""Text modality: tokenizes a string to int32 token ids of a fixed length, with a mask."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import AtLeast, Count, FilePath, Within
from mmjax.errors import UserError
from mmjax.files import user_path
from mmjax.tokens import InputSpec


class Text:
    """Converts strings to token ids.

    Two special tokens follow the tokenizer's n tokens (n is its largest id + 1): `begin` = n, for decoders, and
    `end` = n + 1. Every text ends with `end`, which distinguishes an empty text from a missing one.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Text`.

        Attributes:
          length: maximum length in tokens, including `end`. Longer texts are truncated before `end`.
          tokenizer: "bytes" (UTF-8 bytes, 256 tokens), or the path of a Hugging Face `tokenizers` file (`.json`) or a
            sentencepiece model (`.model`).
          lowercase: converts text to lower case.
          tokens_per_byte: planned tokens per byte of a packed text; tokens beyond the plan are truncated. Word-level
            tokenizers need about 0.25 for English. Values above 1 leave room for tokens that augmentation adds.
          vocabulary: rows of the embedding table; by default the tokenizer's vocabulary plus the two special tokens.
            Use more to make the table divisible over devices, or to reserve rows for a later tokenizer.
        """

        length: Annotated[int, AtLeast(2)] = 32
        tokenizer: Annotated[str, FilePath(("bytes",))] = "bytes"
        lowercase: bool = False
        tokens_per_byte: Annotated[float, Within(0.01, 8.0)] = 1.0
        vocabulary: Count | None = None

    measures: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, config: Config):
        self.config = config
        self._encode, size = _load_tokenizer(config.tokenizer)
        self.begin, self.end = size, size + 1
        # Special tokens that the tokenizer adds to any text, plus one: sentencepiece adds a word-start marker only when
        # the text has a word.
        self._special_tokens = len(self._encode("")) + (config.tokenizer != "bytes")
        self.vocabulary = config.vocabulary or size + 2
        if self.vocabulary < size + 2:
            problem = f"{self.vocabulary} is too small for the tokenizer's {size} tokens plus begin and end"
            raise UserError("vocabulary", problem, f"give at least {size + 2}")

    @property
    def spec(self) -> InputSpec:
        """[length] int32, with a mask per token."""
        details = {"vocabulary": self.vocabulary, "begin": self.begin, "end": self.end}
        return InputSpec((self.config.length,), "int32", mask_rank=1, details=details)

    def process(self, raw: str) -> tuple[np.ndarray, np.ndarray]:
        """Converts a string to (values [length] int32, mask [length] bool).

        Raises:
          ValueError: if `raw` is not a string.
        """
        tokens = self._tokenize(raw, self.config.length)
        values = np.zeros(self.config.length, np.int32)
        values[: len(tokens)] = tokens
        return values, np.arange(self.config.length) < len(tokens)

    def packed_spec(self, budget: int) -> InputSpec:
        """[budget] int32, with positions (token index)."""
        return dataclasses.replace(self.spec, shape=(budget,), axes=1)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """Computes planned tokens per text including `end`, int64 [records], limited by `length` and `budget`."""
        tokens = np.ceil(measured["bytes"] * self.config.tokens_per_byte).astype(np.int64) + 1 + self._special_tokens
        return np.minimum(tokens, min(budget, self.config.length))

    def process_packed(self, raw: str, max_elements: int) -> tuple[np.ndarray, np.ndarray]:
        """Converts a string to (token ids [n] int32, token index [n, 1] float32).

        Raises:
          ValueError: if `raw` is not a string.
        """
        tokens = np.asarray(self._tokenize(raw, min(max_elements, self.config.length)), np.int32)
        return tokens, np.arange(len(tokens), dtype=np.float32)[:, None]

    def _tokenize(self, raw: str, max_tokens: int) -> list[int]:
        """Returns at most `max_tokens` token ids, the last of which is `end`."""
        if not isinstance(raw, str):
            raise ValueError(f"text must be a string, not {type(raw).__name__}")
        tokens = list(self._encode(raw.lower() if self.config.lowercase else raw))
        return [*tokens[: max_tokens - 1], self.end]

    def read(self, argument: str, where: str) -> str:
        """Returns `argument`, the text itself.

        Raises:
          UserError: if it is not valid UTF-8.
        """
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(where, f"{argument!r} is not valid UTF-8", "give text in UTF-8") from None
        return argument

    def files(self) -> list[pathlib.Path]:
        """Lists the tokenizer's file, if any."""
        return [] if self.config.tokenizer == "bytes" else [user_path(self.config.tokenizer)]


def _load_tokenizer(name: str) -> tuple[Callable[[str], list[int]], int]:
    """Returns (encode function, vocabulary size). The text of a ValueError is "problem; remedy"."""
    if name == "bytes":
        return _encode_bytes, 256
    path = user_path(name)
    if path.suffix not in (".json", ".model"):
        raise ValueError(f"unknown tokenizer {name!r}; give 'bytes' or the path of a .json or .model file")
    if not os.path.isfile(path):
        raise ValueError(f"tokenizer file {name!r} does not exist; give the path of a .json or .model file")
    return _load_hugging_face(path) if path.suffix == ".json" else _load_sentencepiece(path)


def _encode_bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def _load_hugging_face(path: pathlib.Path) -> tuple[Callable[[str], list[int]], int]:
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"tokenizer {str(path)!r} needs tokenizers; pip install 'mmjax[tokenizers]'") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # The package raises plain Exception.
    except Exception as error:
        raise ValueError(f"tokenizer {str(path)!r} cannot be read: {error}; give a Hugging Face file") from None
    # The modality pads and truncates. The mask would count the tokenizer's padding as text, and its truncation would
    # precede `length`.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for option in ("dropout", "alpha", "nbest_size"):
        # Disable subword regularisation, which tokenizes the same text differently at each call.
        if getattr(tokenizer.model, option, None) is not None:
            setattr(tokenizer.model, option, None)
    # Ids may have gaps, and the post-processor may add tokens outside of the vocabulary.
    ids = [*tokenizer.get_vocab(with_added_tokens=True).values(), *tokenizer.encode("").ids]
    return _HuggingFace(tokenizer), max(ids, default=-1) + 1


@dataclasses.dataclass(frozen=True)
class _HuggingFace:
    """Encode function of a Hugging Face tokenizer. A class, because worker processes cannot unpickle closures."""

    tokenizer: Any

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids


def _load_sentencepiece(path: pathlib.Path) -> tuple[Callable[[str], list[int]], int]:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(f"tokenizer {str(path)!r} needs sentencepiece; pip install 'mmjax[tokenizers]'") from None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"tokenizer {str(path)!r} cannot be read: {error}; give a sentencepiece model") from None
    return processor.encode, processor.get_piece_size()
