"""Compiles Pallas kernels one by one for a single TPU chip and reports the compiler's static cycles.

    python -m mmjax.planning.kernel_compiler < requests > results

Runs in a separate process, as libtpu reads its options only when it loads, and aborts on kernels that it cannot
analyse.
Each line of standard input is a request, each line of standard output its result, both JSON:

    {"topology": "v5e:2x2", "operands": ["bf16[32,256,1024]", …], "results": […], "backend_config": "…", "trips": [32]}
    {"cycles": 284508, "bundles": 247200}
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

_OPTIONS = (
    # Writes the static profile, and `estimated_cycles` into the backend_config of custom calls.
    "--xla_jf_dump_static_llo_profile_to={folder}",
    # The type check aborts on packed conversions of Pallas kernels.
    "--xla_tpu_check_llo_types=false",
    # Writes the instruction bundles.
    "--xla_jf_dump_to={folder}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)
_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:\w+)?\s*:\s*((?:>\s*)+)\{")


def executed_bundles(text: str, trips: Sequence[int]) -> int:
    """Counts the instruction bundles that one call executes, without stalls.

    Args:
      text: final bundles of the kernel; each ">" before a bundle is one loop around it.
      trips: executions of each loop, outermost first.

    Returns:
      The count; 0 if loops are nested more deeply than `trips`, or the text has no bundles.
    """
    depths = [match[1].count(">") for line in text.splitlines() if (match := _BUNDLE.match(line))]
    if not depths or max(depths) > len(trips):
        return 0
    executions = [1]
    for count in trips:
        executions.append(executions[-1] * count)
    return sum(executions[depth] for depth in depths)


def _compile(request: dict[str, Any], folder: pathlib.Path) -> dict[str, int]:
    import jax
    from jax.sharding import SingleDeviceSharding

    from mmjax.planning.hlo import Module
    from mmjax.planning.topology import topology_devices

    sharding = SingleDeviceSharding(topology_devices(request["topology"])[0])
    operands = [jax.ShapeDtypeStruct(*_parse(text), sharding=sharding) for text in request["operands"]]
    results = [jax.ShapeDtypeStruct(*_parse(text)) for text in request["results"]]

    def call(*arrays: jax.Array) -> Any:
        kernel = jax.ffi.ffi_call(
            "tpu_custom_call", results, custom_call_api_version=1, legacy_backend_config=request["backend_config"]
        )
        return kernel(*arrays)

    before = set(folder.iterdir())
    module = Module(str(jax.jit(call).lower(*operands).compile().as_text()))
    (kernel,) = (each for each in module.instructions.values() if 'target="tpu_custom_call"' in each.attributes)
    written = [path for path in set(folder.iterdir()) - before if path.name.endswith("-final_bundles.txt")]
    # libtpu names these files TIME-INSTRUCTION-NUMBER-final_bundles.txt.
    bundles = [path for path in written if f"-{kernel.name}-" in path.name and "analysis" not in path.name]
    executed = executed_bundles(bundles[0].read_text(errors="replace"), request["trips"]) if bundles else 0
    return {"cycles": kernel.cycles, "bundles": executed}


def _parse(text: str) -> tuple[tuple[int, ...], Any]:
    """Parses an HLO type like "bf16[32,256]" into (shape, dtype)."""
    import jax.numpy as jnp

    name, sizes = re.fullmatch(r"(\w+)\[([\d,]*)\]", text).groups()  # type: ignore[union-attr]
    kinds = {"s": "int", "u": "uint", "f": "float"}
    named = {"bf16": "bfloat16", "pred": "bool"}
    simple = re.fullmatch(r"([suf])(\d+)", name)
    dtype = kinds[simple[1]] + simple[2] if simple else named.get(name, name)
    return tuple(int(size) for size in sizes.split(",") if size), jnp.dtype(dtype)


def main() -> None:
    """Answers the requests on standard input, one by one."""
    # Other output, like warnings of libraries, goes to standard error.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(option.format(folder=name) for option in _OPTIONS)
        for line in sys.stdin:
            print(json.dumps(_compile(json.loads(line), pathlib.Path(name))), file=results, flush=True)


if __name__ == "__main__":
    main()
