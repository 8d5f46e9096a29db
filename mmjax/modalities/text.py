"""Text: a sentence becomes int32 tokens of one length, with a mask of what is real."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np

from mmjax.config import AtLeast, Count, Within
from mmjax.errors import UserError
from mmjax.tokens import InputSpec


class Text:
    """Makes sentences into tokens.

    Two tokens of our own follow the tokenizer's vocabulary of n: `begin` = n, for decoders, and `end` = n + 1. The end
    stands after every sentence, so that an empty one that is present differs from one that is absent.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """How a sentence becomes an array.

        Attributes:
          length: in tokens, the end included; a longer sentence loses its last tokens, but not the end.
          tokenizer: "bytes" (the 256 bytes of UTF-8), or the path of a `.json` file of Hugging Face `tokenizers`, or of
            a `.model` file of sentencepiece.
          lowercase: whether to ignore case.
          tokens_per_byte: the room that a packed text is planned with, for each byte of it. What has more tokens loses
            its last ones, but not the end. A tokenizer of words makes about 0.25 of English; above 1 leaves room for
            what augmentation adds.
          vocabulary: how many tokens the model keeps vectors for; by default those that the tokenizer makes and our own
            two. More leave room, so that the table divides over chips, or stand for a tokenizer that is yet to come.
        """

        length: Annotated[int, AtLeast(2)] = 32
        tokenizer: str = "bytes"
        lowercase: bool = False
        tokens_per_byte: Annotated[float, Within(0.01, 8.0)] = 1.0
        vocabulary: Count | None = None

    measures: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, config: Config):
        self.config = config
        self._encode, size = _load(config.tokenizer)
        self.begin, self.end = size, size + 1
        # What a tokenizer puts around any text; sentencepiece's mark of a word's beginning comes with the first word.
        self._around = len(self._encode("")) + (config.tokenizer != "bytes")
        self.vocabulary = config.vocabulary or size + 2
        if self.vocabulary < size + 2:
            problem = f"{self.vocabulary} are fewer than the {size} tokens of the tokenizer and our own two"
            raise UserError("vocabulary", problem, f"give at least {size + 2}")

    @property
    def spec(self) -> InputSpec:
        """[length] int32, with a flag for each token."""
        details = {"vocabulary": self.vocabulary, "begin": self.begin, "end": self.end}
        return InputSpec((self.config.length,), "int32", mask_rank=1, details=details)

    def process(self, raw: str) -> tuple[np.ndarray, np.ndarray]:
        """Makes (values [length] int32, mask [length] bool) of a sentence.

        Raises:
          ValueError: if `raw` is not a string.
        """
        tokens = self._tokens(raw, self.config.length)
        values = np.zeros(self.config.length, np.int32)
        values[: len(tokens)] = tokens
        return values, np.arange(self.config.length) < len(tokens)

    def packed(self, budget: int) -> InputSpec:
        """[budget] int32, with positions (index)."""
        return dataclasses.replace(self.spec, shape=(budget,), axes=1)

    def lengths(self, measured: Mapping[str, np.ndarray], budget: int) -> np.ndarray:
        """What the bytes of each text make at most, and the end, cut to `length` and to a row."""
        tokens = np.ceil(measured["bytes"] * self.config.tokens_per_byte).astype(np.int64) + 1 + self._around
        return np.minimum(tokens, min(budget, self.config.length))

    def elements(self, raw: str, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes (tokens [n] int32, index [n, 1]) of a sentence; raises ValueError if `raw` is not a string."""
        tokens = np.asarray(self._tokens(raw, min(most, self.config.length)), np.int32)
        return tokens, np.arange(len(tokens), dtype=np.float32)[:, None]

    def _tokens(self, raw: str, most: int) -> list[int]:
        """Of a sentence, the end included, which stays where it is cut."""
        if not isinstance(raw, str):
            raise ValueError(f"a text is a string, not {type(raw).__name__}")
        tokens = list(self._encode(raw.lower() if self.config.lowercase else raw))
        return [*tokens[: most - 1], self.end]

    def read(self, argument: str, where: str) -> str:
        """Returns the sentence, which is the argument itself. Raises UserError if it is not valid UTF-8."""
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UserError(where, f"{argument!r} is not valid UTF-8", "give a sentence in UTF-8") from None
        return argument

    def files(self) -> list[pathlib.Path]:
        """The tokenizer's file, if it has one."""
        return [] if self.config.tokenizer == "bytes" else [pathlib.Path(self.config.tokenizer)]


def _load(name: str) -> tuple[Callable[[str], list[int]], int]:
    """What makes a string into token numbers, and how many there are; a ValueError is "problem; remedy"."""
    if name == "bytes":
        return _bytes, 256
    path = pathlib.Path(name)
    if path.suffix not in (".json", ".model"):
        raise ValueError(f"unknown tokenizer {name!r}; give 'bytes' or the path of a .json or .model file")
    if not path.is_file():
        raise ValueError(f"tokenizer: there is no file {name!r}; give the path of a tokenizer's file")
    return _hugging_face(path) if path.suffix == ".json" else _sentencepiece(path)


def _bytes(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def _hugging_face(path: pathlib.Path) -> tuple[Callable[[str], list[int]], int]:
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"tokenizer {str(path)!r} needs tokenizers; pip install 'mmjax[tokenizers]'") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # The package raises bare Exception.
    except Exception as error:
        raise ValueError(f"tokenizer {str(path)!r} cannot be read: {error}; give a tokenizers file") from None
    return _HuggingFace(tokenizer), tokenizer.get_vocab_size()


@dataclasses.dataclass(frozen=True)
class _HuggingFace:
    """A class and not a closure, so that it can be sent to the pipeline's worker processes."""

    tokenizer: Any

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids


def _sentencepiece(path: pathlib.Path) -> tuple[Callable[[str], list[int]], int]:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(f"tokenizer {str(path)!r} needs sentencepiece; pip install 'mmjax[tokenizers]'") from None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"tokenizer {str(path)!r} cannot be read: {error}; give a sentencepiece model") from None
    return processor.encode, processor.get_piece_size()
