"""libtpu on machines without a TPU, where it is only a compiler."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, MutableMapping

_COMPILER_ONLY = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def has_tpu(devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """Returns True if this machine has the device files of a Cloud TPU VM."""
    return any(True for pattern in ("accel[0-9]*", "vfio/[0-9]*") for _ in devices.glob(pattern))


def expects_tpu(environment: Mapping[str, str]) -> bool:
    """Returns True if this machine has a TPU, or its environment speaks of one."""
    asked = "tpu" in environment.get("JAX_PLATFORMS", "") or any(name.startswith("TPU_") for name in environment)
    return asked or has_tpu()


def use_as_compiler(environment: MutableMapping[str, str]) -> None:
    """Keeps libtpu from querying Google's metadata server, from locking a TPU, and from printing errors about both."""
    for name, value in _COMPILER_ONLY.items():
        environment.setdefault(name, value)
