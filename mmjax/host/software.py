"""Versions of the installed packages and the git commit of this one."""

from __future__ import annotations

import pathlib
import subprocess
from importlib import metadata

from mmjax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorflow-datasets")


def package_versions() -> dict[str, str | None]:
    """Returns the versions of mmjax and of `PACKAGES`; None for packages that are not installed."""
    return {"mmjax": __version__, **{package: package_version(package) for package in PACKAGES}}


def package_version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Returns the git commit of this package, with "+" appended if files were changed; None if unknown."""
    folder = pathlib.Path(__file__).parents[1]
    outputs = []
    for command in (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--", "."]):
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        outputs.append(done.stdout.strip())
    return outputs[0] + ("+" if outputs[1] else "")
