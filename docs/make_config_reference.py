"""Generates the tables of `docs/config.md` from the config dataclasses: `python docs/make_config_reference.py`.

The prose of the page is written by hand. The text between `<!-- table PLACE -->` and `<!-- end -->` is generated from
the dataclass at PLACE, for example `mmjax.experiment:TrainConfig`; after `<!-- kinds PLACE -->`, from all entries of
the registry at PLACE, for example `mmjax.encoders:ENCODERS`; after `<!-- sizes PLACE -->`, from a table of variants.
With `--check` nothing is written, and the exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pathlib
import re
import sys
import types
import typing
from typing import Annotated, Any, Literal, Union

from mmjax.config import Above, FilePath, Formerly

PAGE = pathlib.Path(__file__).parent / "config.md"


def reference(page: str) -> str:
    """Returns the page with all tables regenerated."""
    makers = {"table": table, "kinds": kinds, "sizes": sizes}

    def make(match: re.Match) -> str:
        return f"{match[1]}\n\n{makers[match[2]](look_up(match[3]))}\n\n<!-- end -->"

    return re.sub(r"(<!-- (table|kinds|sizes) (\S+) -->)\n.*?<!-- end -->", make, page, flags=re.S)


def places(page: str) -> list[str]:
    """Returns the PLACE of each table of the page."""
    return re.findall(r"<!-- (?:table|kinds|sizes) (\S+) -->", page)


def look_up(place: str) -> Any:
    """Returns the object at "package.module:NAME"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def kinds(components: dict[str, type]) -> str:
    """Returns name, description and options of each kind."""
    parts = []
    for kind, cls in components.items():
        parts.append(f"#### `{kind}`\n\n{paragraph(cls)}\n\n{table(cls.Config)}")
    return "\n\n".join(parts)


def sizes(variants: dict[str, tuple[int, int, int, int]]) -> str:
    """Returns the table of Transformer variants."""
    rows = ["| variant | width | depth | heads | hidden |", "|---|---|---|---|---|"]
    return "\n".join(rows + [f"| `{name}` | " + " | ".join(map(str, row)) + " |" for name, row in variants.items()])


def paragraph(cls: type) -> str:
    """Returns the first paragraph of a docstring as one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def table(cls: type) -> str:
    """Formats the fields of a dataclass as a Markdown table.

    Raises:
      ValueError: if a field has no line under `Attributes:`.
    """
    hints, meanings = typing.get_type_hints(cls, include_extras=True), attributes(cls)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in meanings:
            raise ValueError(f"{cls.__module__}.{cls.__qualname__}.{field.name} has no line under Attributes:")
        kind = section_or_value(field) if hints[field.name] is Any else describe(hints[field.name])
        cells = [f"`{field.name}`", kind, default(field), meanings[field.name]]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) if len(rows) > 2 else "No options."


def attributes(cls: type) -> dict[str, str]:
    """Returns {field: meaning} from the section `Attributes:` of the docstrings of a class and its base classes."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "") if "__doc__" in vars(base) else ""
        section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", text, re.M)
        for names, meaning in re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section[1] if section else "", re.M):
            for name in names.split(", "):
                meanings[name] = " ".join(meaning.split())
    return meanings


def section_or_value(field: dataclasses.Field) -> str:
    """Describes the values of a field of type Any, judged by its default."""
    if field.default is None:
        return "section or `None`"
    return "number or section" if isinstance(field.default, float) else "section"


def describe(annotation: Any) -> str:
    """Formats a type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [limits(bound) for bound in arguments[1:] if not isinstance(bound, (FilePath, Formerly))]
        return " ".join([describe(arguments[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{spell(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is tuple:
        return f"list of {'sections' if arguments[0] is Any else describe(arguments[0])}"
    if origin is dict:
        return "section" if arguments[1] is Any else f"section of {describe(arguments[1])}"
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "`None`"}
    return names.get(annotation, "section")


def limits(bound: Any) -> str:
    if isinstance(bound, Above):
        return f"> {bound.bound:g}"
    if hasattr(bound, "bound"):
        return f"≥ {bound.bound:g}"
    return f"in [{bound.low:g}, {bound.high:g}{')' if bound.open_end else ']'}"


def default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{spell(field.default_factory())}`"
    return "required" if field.default is dataclasses.MISSING else f"`{spell(field.default)}`"


def spell(value: Any) -> str:
    """Formats a default value as in a recipe."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(spell, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main() -> int:
    before = PAGE.read_text()
    after = reference(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
