"""Copies a recipe into `configs/` of the current folder for editing. Without a name, lists the recipes.

    mmjax init digits
    mmjax train --config=digits --workdir=runs/digits

If the recipe imports another one, as `siglip_b16` imports `siglip`, both are copied.
"""

from __future__ import annotations

import pathlib
import re

from absl import flags as absl_flags

from mmjax.errors import UserError, nearest
from mmjax.files import user_path, write_atomically
from mmjax.recipe import shipped_recipes

ARGUMENTS = "[RECIPE]"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax init`."""
    absl_flags.DEFINE_string("output", "configs", "folder for the recipe", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    """Copies the recipe, or lists all recipes."""
    recipes = shipped_recipes()
    if not arguments:
        for name, path in recipes.items():
            text = path.read_text()
            if "def get_config(" in text:
                print(f"{name:<16} {text.partition(chr(10))[0].strip(chr(34))}")
        return
    (name,) = arguments if len(arguments) == 1 else (" ".join(arguments),)
    if name not in recipes:
        raise UserError(f"mmjax init {name}", f"unknown recipe {name!r}", nearest(name, recipes))
    folder = user_path(flags.output)
    copies = {folder / recipes[each].name: recipes[each].read_text() for each in _with_bases(name, recipes)}
    for path, text in copies.items():
        if path.exists() and path.read_text() != text:
            raise UserError(str(path), "exists and differs from the recipe", "move the file, or give another --output")
    for path, text in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        print(path)


def _with_bases(name: str, recipes: dict[str, pathlib.Path]) -> list[str]:
    """Returns the recipe's name and the names of the recipes that it imports, directly or indirectly."""
    bases = re.findall(r"^from configs\.(\w+) import", recipes[name].read_text(), re.M)
    return [name, *(each for base in bases for each in _with_bases(base, recipes))]
