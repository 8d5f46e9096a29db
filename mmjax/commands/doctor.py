"""Shows what mmjax runs on: versions, devices, host, disk, and which optional parts are missing.

    mmjax doctor
    mmjax doctor --json

Ends with 1 where JAX cannot start its devices. On several hosts of one TPU slice, run it on all of them at once: JAX
waits there until every host has started.
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

PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets")
# extra: the modules of which each group needs one.
EXTRAS: dict[str, list[tuple[str, ...]]] = {
    "demo": [("espeakng_loader",)],
    "tokenizers": [("tokenizers",), ("sentencepiece",)],
    "cuda": [("jax_cuda12_plugin", "jax_cuda13_plugin")],
    "tpu": [("libtpu",)],
}


def define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of a table", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    facts = examine()
    if flags.json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(facts)
    return 1 if facts["devices_error"] else 0


def examine() -> dict[str, Any]:
    """Returns the facts as plain values, the same as `--json` prints."""
    from mmjax.host.cores import visible_cores

    extras = {name: _has(groups) for name, groups in EXTRAS.items()}
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


def _has(groups: list[tuple[str, ...]]) -> bool:
    # Only looked for: importing libtpu or a CUDA plugin would take the device.
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
    except Exception as error:  # a doctor reports, whatever a plugin or driver raises
        return [], f"{type(error).__name__}: {error}"
    return [
        {"name": str(d), "platform": d.platform, "kind": d.device_kind, "memory_bytes": _memory(d)} for d in devices
    ], None


def _memory(device: Any) -> int | None:
    """The device's own memory; None on the CPU, which shares the host's."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # some plugins do not implement it
        return None


def _host_memory() -> int:
    """RAM that this process may use: the machine's, or less where a container sets a limit."""
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
        advice.append(
            "JAX found no device: is another process holding it, and does the driver match the installed extra?"
        )
    if Path("/dev/nvidiactl").exists() and "gpu" not in platforms:
        advice.append("an NVIDIA GPU is here but JAX does not use it: pip install -c constraints.txt -e '.[cuda]'")
    if (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()) and "tpu" not in platforms:
        advice.append("a TPU seems to be here but JAX does not use it: pip install -c constraints.txt -e '.[tpu]'")
    if not extras["demo"]:
        advice.append("speech for the digits demo is missing: pip install -c constraints.txt -e '.[demo]'")
    if not extras["tokenizers"]:
        advice.append("subword tokenizers are missing (optional): pip install -c constraints.txt -e '.[tokenizers]'")
    return advice


def _gibibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("python", facts["python"])
    for package, version in facts["versions"].items():
        table.add_row(package, version or "[red]not installed[/red]")
    table.add_row("git commit", facts["git_commit"] or "unknown")
    if facts["devices_error"]:
        table.add_row("devices", f"[red]{facts['devices_error']}[/red]")
    for device in facts["devices"]:
        shared = device["memory_bytes"] is None and device["platform"] == "cpu"
        memory = "the host's memory" if shared else _gibibytes(device["memory_bytes"])
        table.add_row("device", f"{device['name']}: {device['kind']}, {memory}")
    host, data = facts["host"], facts["data"]
    table.add_row("host", f"{host['system']}, {host['visible_cores']} of {host['cores']} cores")
    table.add_row("memory", _gibibytes(host["memory_bytes"]))
    made = "" if data["exists"] else " (not there yet)"
    table.add_row("data folder", f"{data['folder']}{made}, {_gibibytes(data['free_bytes'])} free")
    table.add_row("MMJAX_CACHE", data["MMJAX_CACHE"] or "not set: the data folder is the default")
    for extra, there in facts["extras"].items():
        table.add_row(f"extra {extra}", "[green]installed[/green]" if there else "not installed")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for line in facts["advice"]:
        console.print(f"- {line}", markup=False)
