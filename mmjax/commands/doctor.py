"""Shows versions, devices, host, disk space and missing optional packages.

    mmjax doctor
    mmjax doctor --json

Exits with 1 if JAX cannot initialise its devices. On a TPU slice of several hosts, run it on all of them at once,
because JAX waits until every host has started.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from mmjax.host.libtpu import has_tpu

PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
# {extra: groups of modules}; an extra is installed if at least one module of each group is.
EXTRAS: dict[str, list[tuple[str, ...]]] = {
    "demo": [("espeakng_loader",)],
    "tokenizers": [("tokenizers",), ("sentencepiece",)],
    "cuda": [("jax_cuda12_plugin", "jax_cuda13_plugin")],
    "tpu": [("libtpu",)],
}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax doctor`."""
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of a table", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Prints the report. Returns 1 if JAX cannot initialise its devices, else 0."""
    report = collect()
    if flags.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    return 1 if report["devices_error"] else 0


def collect() -> dict[str, Any]:
    """Returns the contents of the report, which `--json` prints. Sizes are in bytes."""
    from mmjax.host.cores import visible_cores

    extras = {name: _is_installed(groups) for name, groups in EXTRAS.items()}
    devices, error = _devices()
    data = Path(os.environ.get("MMJAX_CACHE") or Path.home() / ".cache" / "mmjax").expanduser()
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "devices": devices,
        "devices_error": error,
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "visible_cores": visible_cores(),
            "memory_bytes": _host_memory(),
        },
        "data": {
            "folder": str(data),
            "exists": data.is_dir(),
            "free_bytes": _free_bytes(data),
            "MMJAX_CACHE": os.environ.get("MMJAX_CACHE"),
        },
        "extras": extras,
        "advice": _advice(extras, devices, error),
    }


def _is_installed(groups: list[tuple[str, ...]]) -> bool:
    # Search without importing, because importing libtpu or a CUDA plugin would claim the device.
    return all(any(importlib.util.find_spec(module) for module in group) for group in groups)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(["git", "status", "-s"], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    try:
        import jax

        devices = jax.local_devices()
    except Exception as error:  # plugins and drivers raise errors of any type, all to be reported
        return [], f"{type(error).__name__}: {error}"
    return [
        {"name": str(d), "platform": d.platform, "kind": d.device_kind, "memory_bytes": _memory(d)} for d in devices
    ], None


def _memory(device: Any) -> int | None:
    """Returns the device's memory in bytes; None if unknown or on the CPU, which shares the host's."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # not implemented by some plugins
        return None


def _host_memory() -> int:
    """Returns the RAM available to this process in bytes: the machine's, or the container's limit if lower."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(memory, int(text)) if text.isdigit() else memory


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _advice(extras: dict[str, bool], devices: list[dict[str, Any]], error: str | None) -> list[str]:
    advice = []
    platforms = {device["platform"] for device in devices}
    if error:
        advice.append("JAX found no device: check that no other process holds it, and that the driver fits the extra")
    if Path("/dev/nvidiactl").exists() and "gpu" not in platforms:
        advice.append("JAX does not use this machine's NVIDIA GPU: pip install -c constraints.txt -e '.[cuda]'")
    if has_tpu() and "tpu" not in platforms:
        advice.append("a TPU seems present, but JAX does not use it: pip install -c constraints.txt -e '.[tpu]'")
    if not extras["demo"]:
        advice.append("the speech synthesis of the digits demo is missing: pip install -c constraints.txt -e '.[demo]'")
    if not extras["tokenizers"]:
        advice.append("subword tokenizers are missing (optional): pip install -c constraints.txt -e '.[tokenizers]'")
    return advice


def _gibibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("python", report["python"])
    for package, version in report["versions"].items():
        table.add_row(package, version or "[red]not installed[/red]")
    table.add_row("git commit", report["git_commit"] or "unknown")
    if report["devices_error"]:
        table.add_row("devices", f"[red]{report['devices_error']}[/red]")
    for device in report["devices"]:
        shared = device["memory_bytes"] is None and device["platform"] == "cpu"
        memory = "the host's memory" if shared else _gibibytes(device["memory_bytes"])
        table.add_row("device", f"{device['name']}: {device['kind']}, {memory}")
    host, data = report["host"], report["data"]
    table.add_row("host", f"{host['system']}, {host['visible_cores']} of {host['cores']} cores")
    table.add_row("memory", _gibibytes(host["memory_bytes"]))
    state = "" if data["exists"] else " (does not exist yet)"
    table.add_row("data folder", f"{data['folder']}{state}, {_gibibytes(data['free_bytes'])} free")
    table.add_row("MMJAX_CACHE", data["MMJAX_CACHE"] or "not set; using the default data folder")
    for extra, installed in report["extras"].items():
        table.add_row(f"extra {extra}", "[green]installed[/green]" if installed else "not installed")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for line in report["advice"]:
        console.print(f"- {line}", markup=False)
