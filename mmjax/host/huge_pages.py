"""Working memory in pages of 2 MiB instead of 4 KiB, on Linux hosts that allow it.

XLA on a CPU takes its working memory anew for each step and gives it back to the kernel, which clears it page by page
when it is touched again: a quarter of the time of a small step (`benchmarks/huge_pages.py`). glibc asks for huge pages
where its tunable `glibc.malloc.hugetlb` is 1, which it reads only when a process begins. So the command begins again,
in the same process, with the tunable set.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping

TUNABLE = "glibc.malloc.hugetlb"
SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def tuned(environment: Mapping[str, str], setting: str, libc: str) -> dict[str, str] | None:
    """The environment to begin again with, or None where nothing is to be gained or the user has chosen.

    Args:
      environment: of this process.
      setting: what the kernel says of huge pages, such as "always [madvise] never".
      libc: name and version of the C library, such as "glibc 2.36".
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    name, _, version = libc.partition(" ")
    if TUNABLE in tunables or "[madvise]" not in setting or name != "glibc":
        return None
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (2, 35):
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}


def use_huge_pages() -> None:
    """Begins this command again with huge pages, unless they are on or off already; then it returns."""
    try:
        setting, libc = SETTING.read_text(), os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return
    environment = tuned(os.environ, setting, libc)
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)
