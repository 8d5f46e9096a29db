"""Texts said in other words by a function of the user's, such as a translation there and back.

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

_WHERE = "data.augment, the function of paraphrase"


class Paraphrase:
    """Replaces a text by one that a function of the user's gives for it: a list to choose from, or one that it draws.

    A batch stays a function of the seed and the step only if the function's answer is one of its arguments. Models are
    slow: let the function look up paraphrases that were made before, from a file.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Which function and how often.

        Attributes:
          function: "module:function", of a module that Python can import. It is called as function(text) and returns a
            list of texts, which may be empty; or, where it takes two arguments, as function(text, generator), with a
            `numpy.random.Generator`, and returns a text.
          rate: the probability of each text.
        """

        function: str
        rate: Rate = 0.5

        def __post_init__(self):
            if not re.fullmatch(r"[\w.]+:[\w.]+", self.function):
                raise ValueError(
                    f"function {self.function!r} is not 'module:function'; give for example 'words:retell'"
                )

    def __init__(self, config: Config):
        self.config = config
        self._opened: tuple[Callable[..., Any], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes import the function themselves: not every function can be sent.
        return {**self.__dict__, "_opened": None}

    def open(self) -> None:
        """Imports the function, before training. Raises UserError; who only evaluates does without it."""
        module, _, name = self.config.function.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        # The module is the user's, and may fail in any way.
        except Exception as error:
            problem = f"{self.config.function!r} cannot be imported ({type(error).__name__}: {error})"
            remedy = "name a function of a module that Python finds, such as one in a folder of PYTHONPATH"
            raise UserError(_WHERE, problem, remedy) from None
        if not callable(found):
            problem = f"{self.config.function!r} is a {type(found).__name__}, and no function"
            raise UserError(_WHERE, problem, "name a function that takes a text")
        self._opened = found, _arguments(found) == 2

    def __call__(self, raw: str, draws: np.random.Generator) -> str:
        """Another text, or the same. Raises UserError if the function gives something else than texts."""
        if self._opened is None:
            self.open()
        assert self._opened is not None
        function, chooses = self._opened
        chance, choice = draws.uniform(0.0, 1.0, 2)
        if chance >= self.config.rate:
            return raw
        if chooses:
            return self._checked(function(raw, draws))
        texts = function(raw)
        if isinstance(texts, str) or not isinstance(texts, list | tuple):
            self._refuse(texts, "a list of texts")
        return self._checked(texts[int(choice * len(texts))]) if texts else raw

    def _checked(self, text: Any) -> str:
        if not isinstance(text, str):
            self._refuse(text, "a text" if self._opened and self._opened[1] else "a list of texts")
        return text

    def _refuse(self, given: Any, wanted: str) -> None:
        problem = f"{self.config.function!r} gave {given!r:.60}"
        raise UserError(_WHERE, problem, f"let it return {wanted}")


def _arguments(function: Callable[..., Any]) -> int:
    """How many arguments without a default it takes by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)
