"""JAX's persistent compilation cache, on by default in the cache folder of mmjax.

The variable `JAX_COMPILATION_CACHE_DIR` overrides the folder; the empty string disables the cache. Programs compiled on
a CPU use its instruction-set extensions, so each kind of CPU gets its own folder in a shared cache.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
from collections.abc import MutableMapping

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# JAX by default skips programs that compile in less than a second, which includes most programs at start-up.
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def enable_compilation_cache(cache: pathlib.Path, environment: MutableMapping[str, str]) -> None:
    """Sets the variables that JAX reads on import, unless the user has set the folder. Call before importing JAX."""
    if CACHE_VARIABLE not in environment:
        environment[CACHE_VARIABLE] = str(cache / "compiled" / cpu_fingerprint())
        for name, value in KEEP_ALL.items():
            environment.setdefault(name, value)
    elif environment[CACHE_VARIABLE].startswith("~"):
        # JAX would create a folder named "~".
        environment[CACHE_VARIABLE] = os.path.expanduser(environment[CACHE_VARIABLE])


def cpu_fingerprint() -> str:
    """Returns the architecture and a hash of the CPU's instruction-set flags, such as "x86_64-1a2b3c4d"."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
