"""Package layout: imports only from lower floors, no import cycles, few modules at the top level."""

from __future__ import annotations

import ast
import graphlib
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "mmjax"

FLOORS = [
    ("__init__", "errors"),
    ("tokens", "files", "host"),
    ("config",),
    ("recipe", "processes", "sharding"),
    ("layers", "modalities"),
    ("encoders", "fusion"),
    ("tasks",),
    ("model",),
    ("data",),
    ("prepare",),
    ("datasets", "training"),
    ("evaluation", "reporting"),
    ("planning",),
    ("experiment",),
    ("runs",),
    ("commands",),
    ("__main__",),
]
"""Packages from the bottom floor up; packages of one floor do not import each other."""

TOP_LEVEL_MODULES = {
    "__init__", "__main__", "config", "errors", "experiment", "files", "model", "recipe", "tokens",
}  # fmt: skip


def modules() -> dict[str, pathlib.Path]:
    """File of each module, by its dotted name; a package has the name of its folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imports(path: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """Modules of the package that a file imports, also inside functions, but not only for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmjax":
            module = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{module}.{alias.name}".lstrip(".")
                found.add(full if full in known else module or "__init__")
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("mmjax.")}
    return found


def test_packages_import_from_lower_floors_only():
    known = modules()
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    wrong = []
    for name, path in known.items():
        package = name.partition(".")[0]
        assert package in floor, f"{package} is missing in the list of floors"
        for other in imports(path, known):
            target = other.partition(".")[0]
            if target != package and floor[target] >= floor[package]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_import_circle_exists():
    known = modules()
    # Raises CycleError, which contains the cycle.
    tuple(graphlib.TopologicalSorter({name: imports(path, known) for name, path in known.items()}).static_order())


def test_the_top_level_holds_few_modules():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP_LEVEL_MODULES
