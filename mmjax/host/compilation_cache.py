"""Compiled programs are kept, so that the same run starts faster the second time.

JAX keeps them where `JAX_COMPILATION_CACHE_DIR` says (set it to the empty string for none). Unless the user has chosen,
that is a folder in the cache of mmjax. What is compiled for a CPU may use any of its instructions, so machines of
different kinds that share the cache have a folder each.
"""

from __future__ import annotations

import hashlib
import pathlib
import platform
from collections.abc import MutableMapping

FOLDER = "JAX_COMPILATION_CACHE_DIR"
# By default JAX does not keep what compiles in less than a second, as most programs of a start do.
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def keep_compiled_programs(cache: pathlib.Path, environment: MutableMapping[str, str]) -> None:
    """Sets the variables that JAX reads when it is imported, unless the folder is chosen already."""
    if FOLDER not in environment:
        environment[FOLDER] = str(cache / "compiled" / machine_kind())
        for name, value in KEEP_ALL.items():
            environment.setdefault(name, value)


def machine_kind() -> str:
    """A name that two machines share only if their CPUs have the same instructions."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
