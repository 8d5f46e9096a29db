"""Paraphrasing by a user-defined function, such as back-translation.

Sennrich, Haddow and Birch, Improving Neural Machine Translation Models with Monolingual Data (2016); Edunov et al.,
Understanding Back-Translation at Scale (2018).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.config import Rate
from mmjax.errors import UserError
from mmjax.modalities.augmentation.base import Augmentation

_WHERE = "data.augment, the function of paraphrase"


class Paraphrase(Augmentation):
    """Replaces a text with a paraphrase from a user-defined function, which returns candidates or one random text.

    The function must be deterministic given its arguments, or batches will not be reproducible. Models are slow: let
    the function look up precomputed paraphrases in a file.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of `Paraphrase`.

        Attributes:
          function: "module:function" of an importable module. With one argument, function(text) returns a list of
            candidate texts, possibly empty; with two, function(text, rng) returns a text, where `rng` is a
            `numpy.random.Generator`.
          rate: probability of paraphrasing each text.
        """

        function: str
        rate: Rate = 0.5

        def __post_init__(self):
            if not re.fullmatch(r"[\w.]+:[\w.]+", self.function):
                raise ValueError(
                    f"function {self.function!r} is not 'module:function'; give for example 'mymodule:paraphrase'"
                )

    def __init__(self, config: Config):
        super().__init__(config)
        self._opened: tuple[Callable[..., Any], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes import the function themselves, as not every function can be pickled.
        return {**self.__dict__, "_opened": None}

    def open(self) -> None:
        """Imports the function. Called before training, not before evaluation.

        Raises:
          UserError: if the import fails, or the object is not callable.
        """
        module, _, name = self.config.function.partition(":")
        try:
            function: Any = importlib.import_module(module)
            for attribute in name.split("."):
                function = getattr(function, attribute)
        # User code may raise any exception.
        except Exception as error:
            problem = f"{self.config.function!r} cannot be imported ({type(error).__name__}: {error})"
            remedy = "name a function of an importable module, for example in a folder of PYTHONPATH"
            raise UserError(_WHERE, problem, remedy) from None
        if not callable(function):
            problem = f"{self.config.function!r} is not a function but {type(function).__name__}"
            raise UserError(_WHERE, problem, "name a function that takes a text")
        self._opened = function, _count_arguments(function) == 2

    def __call__(self, raw: str, rng: np.random.Generator) -> str:
        """Returns a paraphrase, or `raw`.

        Raises:
          UserError: if the function returns an invalid type.
        """
        if self._opened is None:
            self.open()
        assert self._opened is not None
        function, takes_rng = self._opened
        chance, choice = rng.uniform(0.0, 1.0, 2)
        if chance >= self.config.rate:
            return raw
        if takes_rng:
            return self._check_text(function(raw, rng))
        texts = function(raw)
        if isinstance(texts, str) or not isinstance(texts, list | tuple):
            self._reject(texts, "a list of texts")
        return self._check_text(texts[int(choice * len(texts))]) if texts else raw

    def _check_text(self, text: Any) -> str:
        if not isinstance(text, str):
            self._reject(text, "a text" if self._opened and self._opened[1] else "a list of texts")
        return text

    def _reject(self, returned: Any, expected: str) -> None:
        problem = f"{self.config.function!r} returned {returned!r:.60}"
        raise UserError(_WHERE, problem, f"let it return {expected}")


def _count_arguments(function: Callable[..., Any]) -> int:
    """Counts the positional arguments without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)
