"""Transparent huge pages (2 MiB instead of 4 KiB) for malloc, on Linux.

XLA on a CPU allocates its working memory anew in each step and returns it to the kernel, which clears it page by page
on the next access. This takes a quarter of the time of a small step (`benchmarks/huge_pages.py`). glibc requests huge
pages if its tunable `glibc.malloc.hugetlb` is 1, and reads the tunable only at process start. The command therefore
re-executes itself, in the same process, with the tunable set.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping

TUNABLE = "glibc.malloc.hugetlb"
KERNEL_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_page_environment(environment: Mapping[str, str], setting: str, libc: str) -> dict[str, str] | None:
    """Returns the environment to re-execute with, or None if the tunable has no effect or the user has set it.

    Args:
      environment: environment variables of this process.
      setting: the kernel's mode of huge pages, such as "always [madvise] never".
      libc: name and version of the C library, such as "glibc 2.36". The tunable needs glibc 2.35.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    name, _, version = libc.partition(" ")
    if TUNABLE in tunables or "[madvise]" not in setting or name != "glibc":
        return None
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (2, 35):
        return None
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}


def use_huge_pages() -> None:
    """Re-executes this command with huge pages. Returns if they are not supported or already configured."""
    try:
        setting, libc = KERNEL_SETTING.read_text(), os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return
    environment = huge_page_environment(os.environ, setting, libc)
    if environment is not None:
        os.execve(sys.executable, sys.orig_argv, environment)
