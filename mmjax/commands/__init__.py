"""The commands, one small file each, and what they share: the table, and the flag that takes a recipe.

A command is a module with

    a docstring                 shown by `mmjax NAME --help`, with an example
    ARGUMENTS = "EXPERIMENT"    only where it takes words that are no flags, for the usage line
    define_flags(flags)         defines its flags in `flags`, an absl `FlagValues` of its own
    define_more_flags(flags, words, asks_help)
                                only where further flags depend on the words that are given, such as --workdir=…
    run(flags, arguments)       does the work; returns None or an exit code

The table has the one line that `mmjax --help` prints, so that listing the commands imports none of them.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from mmjax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

COMMANDS = {
    "train": ("mmjax.commands.train", "train a recipe; goes on where the workdir has a checkpoint"),
    "evaluate": ("mmjax.commands.evaluate", "metrics of a trained model, also without some modalities"),
    "predict": ("mmjax.commands.predict", "answers for raw files"),
    "prepare": ("mmjax.commands.prepare", "clean, check and shard a dataset"),
    "reproduce": ("mmjax.commands.reproduce", "run an experiment again and compare with its recorded result"),
    "doctor": ("mmjax.commands.doctor", "what is installed, which devices there are, what is missing"),
}


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


def load_recipe(path_and_argument: str, flag: str = "--config") -> ConfigDict:
    """Returns `get_config(argument)` of the file in `path.py` or `path.py:argument`.

    Raises:
      UserError: where the file is not there, cannot be run, or returns something else than a `ConfigDict`.
    """
    from ml_collections import ConfigDict

    name, *argument = path_and_argument.split(":", 1)
    path, where = Path(name), f"{flag}={path_and_argument}"
    if not path.is_file():
        remedy = "give the path of a recipe"
        siblings = [str(sibling) for sibling in path.parent.glob("*.py") if sibling.name != "__init__.py"]
        raise UserError(where, f"there is no file {name!r}", nearest(name, siblings) if siblings else remedy)
    try:
        get_config = getattr(_run_file(path), "get_config", None)
        if not callable(get_config):
            raise UserError(where, "the file has no function get_config", "define get_config(), as in configs/")
        try:
            inspect.signature(get_config).bind(*argument)
        except TypeError as error:
            takes = str(inspect.signature(get_config))
            raise UserError(where, f"get_config{takes}: {error}", f"write {name}:ARGUMENT or {name}") from error
        config = get_config(*argument)
    except UserError:
        raise
    except Exception as error:
        # The recipe is what the user edits, so its failure is input that is wrong: say the line, not our own frames.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [error.lineno] if isinstance(error, SyntaxError) else []
        lines += [frame.lineno for frame in frames if frame.filename == str(path)]
        line = lines[-1] if lines else "?"
        problem = f"line {line} raises {type(error).__name__}: {error}"
        raise UserError(where, problem, "correct the recipe") from error
    if not isinstance(config, ConfigDict):
        raise UserError(where, f"get_config returned a {type(config).__name__}", "return an ml_collections.ConfigDict")
    return config


def _run_file(path: Path) -> ModuleType:
    """Runs a recipe as a module. `from configs import digits` works in it, as it does under `python -m mmjax`."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    # Under a name of its own: a recipe called `random.py` must not replace the module that others import.
    spec = importlib.util.spec_from_file_location(f"mmjax_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(str(path), "is not a Python file", "give a recipe, a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


class _RecipeParser(absl_flags.ArgumentParser):
    """Loads a recipe and refuses overrides of keys that it does not have, before config_flags answers with 53 lines."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def parse(self, argument: str) -> ConfigDict:
        config = load_recipe(argument, f"--{self.name}")
        for key in self._overrides():
            check_key(config, key, f"--{self.name}.{key}")
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"

    def _overrides(self) -> Iterator[str]:
        # config_flags looks for them in sys.argv too.
        for word in sys.argv:
            match = re.match(rf"--?(?:no)?{self.name}\.([\w.]+)(=|$)", word)
            if match:
                yield match[1]


def check_key(config: ConfigDict, key: str, where: str) -> None:
    """Raises a UserError unless the recipe has the key, like "train.steps"."""
    from ml_collections import ConfigDict

    node: Any = config
    names = key.split(".")
    for depth, name in enumerate(names, 1):
        if not isinstance(node, ConfigDict):
            raise UserError(where, f"{name!r} stands under a value that is no section", "leave it out")
        if name not in node:
            raise UserError(where, f"the recipe has no key {name!r} here", nearest(name, node.keys()))
        if depth < len(names):  # the last may be a placeholder, which cannot be read before it is set
            node = node[name]


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
