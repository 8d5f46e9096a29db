"""The flag `--config=configs/NAME.py[:ARGUMENT]` and its overrides `--config.KEY=VALUE`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from mmjax.config import parse_literal
from mmjax.errors import UserError
from mmjax.recipe import check_key, load_recipe

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def define_config(flags: absl_flags.FlagValues, name: str = "config", required: bool = True) -> None:
    """Defines the flag `--config=configs/NAME.py[:ARGUMENT]` and its overrides `--config.train.steps=500`.

    The flag's value is the recipe's `ConfigDict` with the overrides applied.
    """
    from ml_collections import config_flags

    for value_type in (list, int, float, str, type(None)):
        # The recipe's value does not tell the type of the key: 1 may stand for a number, None for anything.
        # `mmjax.config.build` checks the types later.
        config_flags.register_flag_parser_for_type(value_type, _LiteralParser(value_type))
    help_text = f"recipe, a Python file with get_config(); --{name}.KEY=VALUE overrides a value"
    config_flags.DEFINE_config_file(name, help_string=help_text, flag_values=flags)
    flags[name].parser = _RecipeParser(name)
    if required:
        absl_flags.mark_flag_as_required(name, flags)


class _RecipeParser(absl_flags.ArgumentParser):
    """Loads a recipe and rejects overrides of unknown keys; the error of config_flags would be 53 lines long."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def parse(self, argument: str) -> ConfigDict:
        config = load_recipe(argument, f"--{self.name}")
        for key in self._overrides():
            where = f"--{self.name}.{key}"
            if check_key(config, key, where):
                raise UserError(where, "is a section, not a value", f"give one of its keys, as in {where}.KEY=VALUE")
        # A ConfigDict refuses 0.3 for a key that holds 1, unless it is made without type safety.
        return type(config)(config.to_dict(preserve_field_references=True), type_safe=False).lock()

    def flag_type(self) -> str:
        return "recipe"

    def _overrides(self) -> Iterator[str]:
        # config_flags also reads sys.argv.
        for argument in sys.argv:
            match = re.match(rf"--?(?:no)?{self.name}\.([\w.]+)(=|$)", argument)
            if match:
                yield match[1]


class _LiteralParser(absl_flags.ArgumentParser):
    """Parses a Python literal, like `--config.data.views="[1, 2]"` or `--config.optimizer.clip=None`.

    Text that is not a literal is an error where the recipe has a number or a list. Where it has text, all but `None` is
    text.
    """

    def __init__(self, value_type: type):
        super().__init__()
        self.value_type = value_type

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str) or self.value_type is str and argument != "None":
            return argument
        try:
            value = parse_literal({"true": "True", "false": "False"}.get(argument, argument))
        except ValueError:
            value = argument
        if value is None or self.value_type is type(None):
            return value
        if self.value_type is list:
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{argument!r} is not a list")
            return list(value)
        if isinstance(value, str):
            raise ValueError(f"{argument!r} is not a number")
        # 1e3 is a float in Python, although it may stand for a number of steps.
        whole = self.value_type is int and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value

    def flag_type(self) -> str:
        return "value" if self.value_type is type(None) else self.value_type.__name__
