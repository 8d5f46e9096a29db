"""Shows versions, devices, host, disk space and missing optional packages.

    mmjax doctor
    mmjax doctor --json

Exits with 1 if JAX cannot initialise its devices. On a TPU slice of several hosts, run it on all of them at once,
because JAX waits until every host has started.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from mmjax.files import cache_folder, to_json
from mmjax.host.libtpu import has_tpu
from mmjax.host.software import git_commit, package_version, package_versions


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of `mmjax doctor`."""
    absl_flags.DEFINE_bool("json", False, "print one JSON object instead of a table", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    """Prints the report. Returns 1 if JAX cannot initialise its devices, else 0."""
    report = collect()
    if flags.json:
        print(to_json(report, indent=2))
    else:
        _print_table(report)
    return 1 if report["devices_error"] else 0


def collect() -> dict[str, Any]:
    """Returns the report as a dict, as printed by `--json`. Sizes are in bytes."""
    from mmjax.host.cores import visible_cores

    missing = missing_packages()
    devices, error = _devices()
    data = cache_folder()
    return {
        "python": platform.python_version(),
        "versions": package_versions(),
        "git_commit": git_commit(),
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
        "extras": {extra: not packages for extra, packages in missing.items()},
        "missing": {extra: packages for extra, packages in missing.items() if packages},
        "advice": _advice(missing, devices, error),
    }


def missing_packages(distribution: str = "mmjax") -> dict[str, list[str]]:
    """Returns the requirements of each extra that are not installed, {extra: requirements}, from the package metadata.

    Imports no package, because importing libtpu or a CUDA plugin would claim the device. Returns {} if the distribution
    itself is not installed.
    """
    try:
        extras = importlib.metadata.metadata(distribution).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {extra: sorted(_missing(distribution, {extra}, set())) for extra in extras}


def _missing(distribution: str, extras: set[str], visited: set[tuple[str, str]]) -> set[str]:
    """Returns the requirements of a distribution's extras that are not installed, including those of nested extras."""
    from packaging.requirements import Requirement

    missing: set[str] = set()
    for text in importlib.metadata.requires(distribution) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate() or not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue  # required without these extras, or by others
        version = package_version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.add(f"{requirement.name}{requirement.specifier}")
            continue
        nested = {(requirement.name, extra) for extra in requirement.extras} - visited
        if nested:
            missing |= _missing(requirement.name, {extra for _, extra in nested}, visited | nested)
    return missing


def _devices() -> tuple[list[dict[str, Any]], str | None]:
    try:
        import jax

        devices = jax.local_devices()
    except Exception as error:  # plugins and drivers may raise any type of error
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


def _advice(missing: dict[str, list[str]], devices: list[dict[str, Any]], error: str | None) -> list[str]:
    advice = []
    platforms = {device["platform"] for device in devices}
    if error:
        advice.append("JAX found no device: check that no other process uses it, and that the driver matches the extra")
    if Path("/dev/nvidiactl").exists() and "gpu" not in platforms:
        advice.append("JAX does not use this machine's NVIDIA GPU: pip install -c constraints.txt -e '.[cuda]'")
    if has_tpu() and "tpu" not in platforms:
        advice.append("a TPU seems present, but JAX does not use it: pip install -c constraints.txt -e '.[tpu]'")
    if not missing:
        advice.append("mmjax is not installed, so its extras are unknown: pip install -c constraints.txt -e .")
    if missing.get("demo"):
        advice.append("packages of the digits demo are missing: pip install -c constraints.txt -e '.[demo]'")
    if missing.get("tokenizers"):
        advice.append("subword tokenizers are missing (optional): pip install -c constraints.txt -e '.[tokenizers]'")
    return advice


def _gibibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console

    from mmjax.reporting.overview import print_key_values

    values = {"python": report["python"]}
    values |= {package: version or "not installed" for package, version in report["versions"].items()}
    values["git commit"] = report["git_commit"] or "unknown"
    if report["devices_error"]:
        values["devices"] = report["devices_error"]
    for index, device in enumerate(report["devices"]):
        shared = device["memory_bytes"] is None and device["platform"] == "cpu"
        memory = "the host's memory" if shared else _gibibytes(device["memory_bytes"])
        values[f"device {index}"] = f"{device['name']}: {device['kind']}, {memory}"
    host, data = report["host"], report["data"]
    values["host"] = f"{host['system']}, {host['visible_cores']} of {host['cores']} cores"
    values["memory"] = _gibibytes(host["memory_bytes"])
    state = "" if data["exists"] else " (does not exist yet)"
    values["data folder"] = f"{data['folder']}{state}, {_gibibytes(data['free_bytes'])} free"
    values["MMJAX_CACHE"] = data["MMJAX_CACHE"] or "not set; using the default data folder"
    for extra, installed in report["extras"].items():
        lacking = f"not installed: {', '.join(report['missing'].get(extra, []))}"
        values[f"extra {extra}"] = "installed" if installed else lacking
    console = Console(soft_wrap=True, highlight=False)
    print_key_values(console, "mmjax doctor", values)
    for line in report["advice"]:
        console.print(f"- {line}", markup=False)
