"""Recipe loading: Python files, such as `configs/digits.py`, whose `get_config(argument)` returns a `ConfigDict`."""

from __future__ import annotations

import importlib.util
import inspect
import os
import site
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError, nearest
from mmjax.files import user_path

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load_recipe(path_and_argument: str, flag: str = "--config") -> ConfigDict:
    """Loads the file of `path.py` or `path.py:argument` and returns its `get_config(argument)`.

    A bare name, such as `digits` or `digits:matched`, is the recipe `configs/NAME.py` of the current folder, or else
    the recipe of this name that mmjax ships.

    Raises:
      UserError: if the file does not exist, fails, or does not return a `ConfigDict`.
    """
    from ml_collections import ConfigDict

    name, *argument = path_and_argument.split(":", 1)
    path, where = _find(name), f"{flag}={path_and_argument}"
    if not os.path.isfile(path):
        siblings = [str(sibling) for sibling in path.parent.glob("*.py") if sibling.name != "__init__.py"]
        known = siblings if "/" in name or name.endswith(".py") else list(shipped_recipes())
        remedy = nearest(name, known) if known else "give the path of a recipe"
        raise UserError(where, f"file {name!r} does not exist", remedy)
    try:
        get_config = getattr(_run_file(path), "get_config", None)
        if not callable(get_config):
            raise UserError(where, "the file has no function get_config", "define get_config(), as in configs/")
        try:
            inspect.signature(get_config).bind(*argument)
        except TypeError as error:
            problem = f"get_config{inspect.signature(get_config)}: {error}"
            raise UserError(where, problem, f"write {name}:ARGUMENT or {name}") from error
        config = get_config(*argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        # The user edits the recipe, so its failure is a user error: report its line, without a traceback of mmjax.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [error.lineno] if isinstance(error, SyntaxError) else []
        lines += [frame.lineno for frame in frames if frame.filename == str(path)]
        location = f"line {lines[-1]} raises" if lines else "the file cannot be read:"
        problem = f"{location} {type(error).__name__}: {error}"
        raise UserError(where, problem, "correct the recipe") from error
    if not isinstance(config, ConfigDict):
        raise UserError(where, f"get_config returned a {type(config).__name__}", "return an ml_collections.ConfigDict")
    return config


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes shipped with mmjax, {name: file}, from `configs/` of the checkout or from the wheel.

    pip installs those of a wheel below the environment, the user's base folder (--user) or DIR (--target=DIR).
    """
    checkout, installed = Path(__file__).parents[1], Path("share", "mmjax", "configs")
    roots = (checkout, Path(sys.prefix), Path(site.getuserbase()))
    for folder in (checkout / "configs", *(root / installed for root in roots)):
        if (folder / "digits.py").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.py"))}
    return {}


def _find(name: str) -> Path:
    if "/" in name or name.endswith(".py"):
        return user_path(name)
    local = Path("configs", f"{name}.py")
    return local if os.path.isfile(local) else shipped_recipes().get(name, Path(name))


def check_key(config: ConfigDict, key: str, where: str) -> bool:
    """Checks that the recipe has a dotted key, like "train.steps". Returns True if it is a section.

    Raises:
      UserError: at `where`, if the key does not exist.
    """
    from ml_collections import ConfigDict

    node: Any = config
    names = key.split(".")
    for depth, name in enumerate(names, 1):
        if not isinstance(node, ConfigDict):
            raise UserError(where, f"the key before {name!r} is a value, not a section", f"remove {name!r}")
        if name not in node:
            raise UserError(where, f"the recipe has no key {name!r} here", nearest(name, node.keys()))
        if depth < len(names):  # the last key may be a placeholder, which cannot be read before it is set
            node = node[name]
    return issubclass(node.get_type(names[-1]), ConfigDict)


def _run_file(path: Path) -> ModuleType:
    """Executes a recipe as a module. Imports like `from configs import digits` work from any working directory."""
    for folder in (os.getcwd(), str(path.resolve().parent.parent)):
        if folder not in sys.path:
            sys.path.append(folder)
    # Prefixed, so that a recipe named `random.py` does not replace the module `random`.
    spec = importlib.util.spec_from_file_location(f"mmjax_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(str(path), "is not a Python file", "give a recipe, a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    spec.loader.exec_module(module)
    return module
