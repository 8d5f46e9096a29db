"""Measures start-up time, step time, host overhead, input time, utilisation and memory of any recipe on any mesh.

    python benchmarks/step.py --config=configs/digits.py
    python benchmarks/step.py --config=configs/digits.py:matched --config.mesh.fsdp=4 --json
    python benchmarks/step.py --config=configs/digits.py --input_cores=2,3

Starts the recipe in two fresh processes, with an empty and with a filled compilation cache, and measures its step in a
third. The data is prepared beforehand. Rounds with one batch that stays on the devices alternate with rounds on batches
from the pipeline; the difference is the time spent waiting for input.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags as absl_flags

from mmjax.commands.config_flag import define_config
from mmjax.errors import UserError
from mmjax.host.compilation_cache import CACHE_VARIABLE, enable_compilation_cache
from mmjax.host.huge_pages import use_huge_pages

# Numbers of layers to compare: with scanned layers the host overhead must not grow with depth.
DEPTHS = (12, 48)


def define_flags(flags: absl_flags.FlagValues) -> None:
    define_config(flags)
    integer, boolean, string = absl_flags.DEFINE_integer, absl_flags.DEFINE_bool, absl_flags.DEFINE_string
    integer("steps", 60, "timed steps with and without the pipeline", lower_bound=4, flag_values=flags)
    boolean("starts", True, "measure starts with an empty and with a filled compilation cache", flag_values=flags)
    absl_flags.DEFINE_list(
        "input_cores",
        [],
        "comma-separated cores reserved for the pipeline and the loop, as on hosts with accelerators; "
        "the step uses the others",
        flag_values=flags,
    )
    boolean("json", False, "print one JSON object instead of a table", flag_values=flags)
    string("part", "", "internal: task of a child process, start or measure", flag_values=flags)
    string("result", "", "internal: result file of a child process", flag_values=flags)
    absl_flags.DEFINE_float("started", 0.0, "internal: start time of a child process", flag_values=flags)


def main(arguments: list[str]) -> int:
    flags = absl_flags.FlagValues()
    define_flags(flags)
    try:
        flags(arguments)
        if flags.part:
            found = start(flags) if flags.part == "start" else measure(flags)
            pathlib.Path(flags.result).write_text(json.dumps(found))
            return 0
        found = in_processes(flags, arguments[1:])
    except (UserError, absl_flags.Error) as error:
        print(f"step.py: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if flags.json else table(found))
    return 0


def in_processes(flags: absl_flags.FlagValues, arguments: list[str]) -> dict[str, Any]:
    """Runs each measurement in its own process, because this process must not hold the devices."""
    from mmjax.datasets import make_dataset
    from mmjax.experiment import DataConfig, plain

    # This also loads the libraries into the system's file cache, so that the first start is not slower for it.
    make_dataset(plain(flags.config)["data"], DataConfig)[1].prepare()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"recipe": next(word for word in arguments if word.startswith("--config"))}
        if flags.starts:
            found["cold"] = _in_a_process("start", arguments, folder)
            found["warm"] = _in_a_process("start", arguments, folder)
        return found | _in_a_process("measure", arguments, folder)


def _in_a_process(part: str, arguments: list[str], folder: str) -> dict[str, Any]:
    result = pathlib.Path(folder) / f"{part}.json"
    environment = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    enable_compilation_cache(pathlib.Path(folder), environment)
    own = [f"--part={part}", f"--result={result}", f"--started={time.time()}"]
    done = subprocess.run([sys.executable, __file__, *arguments, *own], env=environment, stdout=sys.stderr)
    if done.returncode == 2:
        # The child process has printed the error.
        raise SystemExit(2)
    done.check_returncode()
    return json.loads(result.read_text())


def start(flags: absl_flags.FlagValues) -> dict[str, float]:
    """Times a start like that of `mmjax train`, from the command to the end of the first step."""
    from measurements import compile_seconds, first_step

    with compile_seconds() as seconds, tempfile.TemporaryDirectory() as workdir:
        until = first_step(flags.config, pathlib.Path(workdir))
    return {"to_first_step": until - flags.started, **seconds}


def measure(flags: absl_flags.FlagValues) -> dict[str, Any]:
    import measurements

    from mmjax.experiment import Experiment

    if flags.input_cores:
        measurements.separate_cores(flags.input_cores)
    experiment = Experiment(flags.config)
    run = measurements.Run(experiment)
    found: dict[str, Any] = measurements.machine(experiment)
    found |= measurements.steps_and_waiting(run, flags.steps)
    found["overhead_ms"] = {"recipe": measurements.overhead_ms(run, flags.steps)}
    found |= measurements.utilisation(experiment, found["step_ms"] / 1e3)
    found |= measurements.memory(run)
    run.close()
    found["overhead_ms"] |= {f"{depth} layers": _overhead(flags, depth) for depth in DEPTHS}
    return found


def _overhead(flags: absl_flags.FlagValues, depth: int) -> tuple[float, float]:
    import measurements
    import synthetic

    from mmjax.experiment import Experiment

    run = measurements.Run(Experiment(synthetic.transformer_recipe(depth)))
    found = measurements.overhead_ms(run, max(100, flags.steps))
    run.close()
    return found


def table(found: dict[str, Any]) -> str:
    """Formats the results as lines of text."""
    overhead = ", ".join(f"{name} {median:.2f} ms ({low:.2f})" for name, (median, low) in found["overhead_ms"].items())
    gibibyte = 2.0**30
    if found["device_peak_bytes"]:
        peak = f"{found['device_peak_bytes'] / gibibyte:.2f} GiB per device"
    else:
        peak = f"{found['process_peak_bytes'] / gibibyte:.2f} GiB in this process"
    if "step_bytes" in found:
        peak += f"; the compiled step needs {found['step_bytes'] / gibibyte:.2f} GiB per device"
    if found["flops"] is None:
        used = f"unknown: {found['flops_unknown']}"
    else:
        used = f"{found['tflops_per_device']:.3g} TFLOP/s per device ({found['flops']:.3g} FLOPs per step)"
        share = found["utilisation"]
        used += ", peak of this device unknown" if share is None else f", {share:.1%} of the bfloat16 peak"
    rows = {name: found[name] for name in ("recipe", "device", "host", "versions", "mesh")} | {
        "step": f"{found['step_ms']:.2f} ms median, {found['step_ms_p90']:.2f} ms 90th percentile",
        "throughput": f"{found['examples_per_second']:,.0f} examples/s",
        "host time per step": f"{overhead}: median (10th percentile)",
        "waiting for input": (
            f"{found['real_over_same'] - 1:.1%} of a step, real batches against a repeated batch (standard error "
            f"{found['real_over_same_error']:.1%}; rounds {found['real_over_same_low'] - 1:.1%} to "
            f"{found['real_over_same_high'] - 1:.1%})"
        ),
        "host time per batch": f"{found['input_ms']:.2f} ms, while the devices compute",
        "peak memory": peak,
        "utilisation": used,
    }
    if "cold" in found:
        cold, warm = found["cold"], found["warm"]
        for name, keys in (
            ("compiling", ["compile"]),
            ("tracing and lowering", ["trace", "lower"]),
            ("command to first step", ["to_first_step"]),
        ):
            first, second = (sum(each[key] for key in keys) for each in (cold, warm))
            ratio = first / max(second, 1e-9)
            rows[name] = f"{first:.2f} s, with a filled cache {second:.2f} s (ratio {ratio:.2f})"
    return "\n".join(f"{name:23} {value}" for name, value in rows.items())


if __name__ == "__main__":
    # `mmjax train` does the same.
    use_huge_pages()
    sys.exit(main(sys.argv))
