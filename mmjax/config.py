"""Strict config parsing: builds frozen dataclasses from sections of plain values.

A recipe, `configs/NAME.py`, returns an `ml_collections.ConfigDict` of plain values. `build` converts one section to the
`Config` dataclass of the component that owns it. Unknown keys, wrong types and values out of range raise a one-line
`UserError` that suggests a valid key or value:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        depth: Annotated[int, AtLeast(1)] = 12
        pooling: Literal["mean", "attention"] = "mean"

    config = build(Config, {"depth": 6}, where="model.encoders.image")

`choose` selects a component class by the key `kind` from a table `{kind: class}`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

from mmjax.errors import UserError, nearest
from mmjax.files import user_path

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Lower bound for `Annotated`, inclusive."""

    bound: float

    def check(self, value: float) -> str | None:
        """Returns the remedy if `value` is out of range, else None."""
        return None if value >= self.bound else f"give a value of at least {self.bound}"


@dataclasses.dataclass(frozen=True)
class Above:
    """Lower bound for `Annotated`, exclusive."""

    bound: float
    hint: str = ""

    def check(self, value: float) -> str | None:
        """Returns the remedy if `value` is out of range, else None."""
        return None if value > self.bound else f"give a value above {self.bound}{self.hint}"


@dataclasses.dataclass(frozen=True)
class Within:
    """Range for `Annotated`: [low, high], or [low, high) with `open_end`."""

    low: float
    high: float
    open_end: bool = False

    def check(self, value: float) -> str | None:
        """Returns the remedy if `value` is out of range, else None."""
        inside = self.low <= value and (value < self.high if self.open_end else value <= self.high)
        end = ")" if self.open_end else "]"
        return None if inside else f"give a value in [{self.low}, {self.high}{end}"


@dataclasses.dataclass(frozen=True)
class Formerly:
    """Previous name of a config key, for `Annotated`. The old key raises an error that names the new one."""

    name: str


@dataclasses.dataclass(frozen=True)
class FilePath:
    """Marks a string as the path of a file or folder, for `Annotated`. `names` are values that are not paths."""

    names: tuple[str, ...] = ("",)

    def absolute(self, value: Any) -> Any:
        """Returns the absolute path of `value` with `~` expanded; `value` itself if it is not a path."""
        return str(user_path(value).absolute()) if isinstance(value, str) and value not in self.names else value


def parse_literal(text: str) -> Any:
    """Parses a Python literal.

    Raises:
      ValueError: if the text is not a literal, or is nested too deeply.
    """
    try:
        return ast.literal_eval(text)
    # Python's parser raises all of these, depending on the text.
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{text[:60]!r} is not a literal") from None


def path_keys(cls: type) -> dict[str, FilePath]:
    """Returns `{key: marker}` of the fields of the dataclass `cls` that are paths."""
    return {
        key: marker
        for key, hint in _hints(cls).items()
        for marker in getattr(hint, "__metadata__", ())
        if isinstance(marker, FilePath)
    }


Count = Annotated[int, AtLeast(1)]
NonNegative = Annotated[int, AtLeast(0)]
Rate = Annotated[float, Within(0.0, 1.0, open_end=True)]

if TYPE_CHECKING:
    Derived = int
else:
    # A count with default None, which `__post_init__` replaces. Type checkers see an int, the type after construction.
    Derived = Count | None
DERIVED: Any = None
"""Default value of a `Derived` field."""


def build(cls: type[T], section: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass `cls` from a config section.

    Args:
      cls: frozen dataclass; its annotations define the valid types and ranges.
      section: keys and plain values, for example a `ConfigDict`.
      where: dotted path of the section in the config, for messages.

    Raises:
      UserError: on an unknown or missing key, a wrong type, a value out of range, or a `ValueError` from
        `cls.__post_init__`, whose text is "problem; remedy".
    """
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise UserError(where, f"{section!r} is not a section", "give a dict of keys and values")
    hints = _hints(typing.cast(type, cls))
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in section.items():
        if key not in fields:
            raise unknown_key(key, where, cls)
        values[key] = _convert(value, hints[key], f"{where}.{key}".lstrip("."))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}.{name}".lstrip("."), "is missing", f"set it to {_describe(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        problem, _, remedy = str(error).partition("; ")
        raise UserError(where, problem, remedy or "see the docstring of this section") from error


def unknown_key(key: str, where: str, *classes: type) -> UserError:
    """Returns the error for a key that none of `classes` has, with the key's new name or the most similar key."""
    path = f"{where}.{key}".lstrip(".")
    for cls in classes:
        for name, hint in _hints(cls).items():
            if Formerly(key) in getattr(hint, "__metadata__", ()):
                return UserError(path, f"{key!r} was renamed", f"write {name!r}")
    known = [field.name for cls in classes for field in dataclasses.fields(cls) if field.init]
    return UserError(path, f"unknown key {key!r}", nearest(key, known))


@contextlib.contextmanager
def convert_value_errors(where: str) -> Iterator[None]:
    """Converts `ValueError("problem; remedy")` to a `UserError` at `where`. Re-raises other errors: they are bugs."""
    try:
        yield
    except ValueError as error:
        problem, semicolon, remedy = str(error).partition("; ")
        if not semicolon:
            raise
        raise UserError(where, problem, remedy) from error


def choose(table: Mapping[str, Any], section: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Looks up `section["kind"]` in `table` and builds that class's `Config` from the other keys.

    Returns:
      class, config.

    Raises:
      UserError: if `section` is not a dict, `kind` is missing or unknown, or another key is invalid.
    """
    if not hasattr(section, "items"):
        raise UserError(where, f"{section!r} is not a section", "give a dict with the key 'kind'")
    options = dict(section.items())
    kind = options.pop("kind", None)
    if kind is None:
        raise UserError(f"{where}.kind", "is missing", nearest("", table))
    if not isinstance(kind, str):
        raise UserError(f"{where}.kind", f"{kind!r} is {_with_article(type(kind).__name__)}", nearest("", table))
    if kind not in table:
        raise UserError(f"{where}.kind", f"unknown kind {kind!r}", nearest(str(kind), table))
    cls = table[kind]
    return cls, build(cls.Config, options, where)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _describe(annotation: Any) -> str:
    """Returns the type for messages, with an article."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _describe(typing.get_args(annotation)[0])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(annotation))
    if origin is tuple:
        return f"a list, each entry {_describe(typing.get_args(annotation)[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(annotation):
        return "a dict"
    known = {type(None): "None", str: "a string", float: "a number", Any: "a value"}
    return known.get(annotation) or _with_article(getattr(annotation, "__name__", "value"))


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Converts `value` to the type `annotation`.

    Raises:
      UserError: at `where`, on a wrong type or a value out of range.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)

    def reject() -> typing.NoReturn:
        raise UserError(where, f"{value!r} is {_with_article(type(value).__name__)}", f"give {_describe(annotation)}")

    if annotation is Any:
        return value.to_dict() if hasattr(value, "to_dict") else value
    if origin is Annotated:
        value = _convert(value, args[0], where)
        for bound in args[1:]:
            if isinstance(bound, (Formerly, FilePath)):
                continue
            if remedy := bound.check(value):
                raise UserError(where, f"{value!r} is out of range", remedy)
        return value
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):  # True == 1
            raise UserError(where, f"{value!r} is not a choice", nearest(str(value), map(str, args)))
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            try:
                return _convert(value, option, where)
            except UserError as error:
                # Errors in a nested section, or in the only alternative to None, are more specific than `reject`.
                if error.where != where or len(args) == 2 and type(None) in args and option is not type(None):
                    raise
        reject()
    if origin is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, (tuple, list)):
            reject()
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        if not hasattr(value, "items"):
            reject()
        for key in value:
            if not isinstance(key, str):
                raise UserError(
                    where, f"the key {key!r} is {_with_article(type(key).__name__)}", "give strings as keys"
                )
        item_type = args[1] if args else Any
        return {key: _convert(item, item_type, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(annotation):
        return build(annotation, value, where)  # type: ignore[arg-type]
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise UserError(where, f"{value!r:.60} is not finite", "give a finite number")
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3 is a float in Python
    if annotation in (int, str, bool, type(None)) and type(value) is annotation:
        return value
    reject()
