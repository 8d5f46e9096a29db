"""The flag that takes a recipe, `--config=configs/NAME.py[:ARGUMENT]`, and those that change its values."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from mmjax.errors import UserError
from mmjax.recipe import check_key, load_recipe

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def define_config(flags: absl_flags.FlagValues, name: str = "config", required: bool = True) -> None:
    """Defines the flag `--config=configs/NAME.py[:ARGUMENT]` and its overrides `--config.train.steps=500`.

    The value of the flag is the recipe's `ConfigDict`, with the overrides in it.
    """
    from ml_collections import config_flags

    for kind in (list, type(None)):
        # config_flags refuses to override lists and None, which recipes hold; what they become is checked by `build`.
        config_flags.register_flag_parser_for_type(kind, _LiteralParser(kind))
    help_text = f"the recipe, a Python file with get_config(); --{name}.KEY=VALUE changes one of its values"
    config_flags.DEFINE_config_file(name, help_string=help_text, flag_values=flags)
    flags[name].parser = _RecipeParser(name)
    if required:
        absl_flags.mark_flag_as_required(name, flags)


class _RecipeParser(absl_flags.ArgumentParser):
    """Loads a recipe and refuses overrides of keys that it does not have, before config_flags answers with 53 lines."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def parse(self, argument: str) -> ConfigDict:
        config = load_recipe(argument, f"--{self.name}")
        for key in self._overrides():
            where = f"--{self.name}.{key}"
            if check_key(config, key, where):
                raise UserError(where, "is a section and not a value", f"give one of its keys, as in {where}.KEY=VALUE")
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"

    def _overrides(self) -> Iterator[str]:
        # config_flags looks for them in sys.argv too.
        for word in sys.argv:
            match = re.match(rf"--?(?:no)?{self.name}\.([\w.]+)(=|$)", word)
            if match:
                yield match[1]


class _LiteralParser(absl_flags.ArgumentParser):
    """A Python literal: `--config.data.views="[1, 2]"`. What is no literal is a string, unless a list is wanted."""

    def __init__(self, kind: type):
        super().__init__()
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        import ast

        if not isinstance(argument, str):
            return argument
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(argument, argument))
        except (SyntaxError, ValueError):
            value = argument
        if self.kind is list and not isinstance(value, (list, tuple)):
            raise ValueError(f"{argument!r} is not a list")
        return list(value) if self.kind is list else value

    def flag_type(self) -> str:
        return "list" if self.kind is list else "value"
