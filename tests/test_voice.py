"""Docstrings of everything public, and identifiers in the terms of the field."""

from __future__ import annotations

import importlib
import inspect
import io
import pathlib
import pkgutil
import tokenize
from collections.abc import Iterator

import pytest

import mmjax

PACKAGE = pathlib.Path(mmjax.__file__).parent

RETIRED = {
    "LeftOut": "LeaveOneOutRidge",
    "alike": "similarity",
    "best_is": "mode",
    "decided": "decision_fingerprint",
    "fullness": "examples_per_row",
    "headline": "primary_metric",
    "joins": "multi_column",
    "least": "min_delta",
    "narrow_dots": "dots_except_mlp",
    "partners": "num_positives",
    "pull": "cotangent",
    "repeats": "duplicates_expected",
    "sketch": "signature",
    "slopes": "logit_grads",
    "teaches": "train_mask",
    "telling": "distinctive",
    "there": "valid",
    "thought": "latent_block",
    "together": "agree_or_raise",
    "worth": "quality",
}
"""{identifier that is not used in the package: the usual term}."""


def public_objects() -> Iterator[tuple[str, object]]:
    """Public classes, functions and methods, by their qualified names."""
    for info in pkgutil.walk_packages(mmjax.__path__, "mmjax."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{info.name}.{name}", value
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    if attribute.startswith("_"):
                        continue
                    if inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod)):
                        # Look the attribute up on the class, so that an override inherits its base's docstring.
                        bound = getattr(value, attribute)
                        if getattr(bound, "__name__", "") != "<lambda>":  # the default of a callback field
                            yield f"{info.name}.{name}.{attribute}", bound


def test_public_objects_have_docstrings():
    missing = [name for name, value in public_objects() if not (inspect.getdoc(value) or "").strip()]
    assert not missing


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_retired_identifiers_are_not_used(file):
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
    found = {
        f"line {token.start[0]}: {token.string} is now {RETIRED[token.string]}"
        for token in tokens
        if token.type == tokenize.NAME and token.string in RETIRED
    }
    assert not found
