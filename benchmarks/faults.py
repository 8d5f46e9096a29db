"""Faults of real runs: strikes runs with about a hundred faults and writes the table `benchmarks/faults.md`.

    python benchmarks/faults.py
    python benchmarks/faults.py --quick
    python benchmarks/faults.py --only=SIGTERM --work=/tmp/faults

Each fault is a run of a tiny recipe whose processes are killed or stopped, or whose files are damaged, at a chosen or
random moment; then the same command again. The run must end with the exit code and the message that the catalogue
expects, no traceback, and parameters and metrics that are bit-equal to those of an undisturbed run. Rows are kept in
the folder `--work`: a command that is repeated continues. Exit code 1 if a fault does not end as expected.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import json
import pathlib
import signal
import sys
import tempfile
import threading

from fault_injection.catalogue import faults
from fault_injection.processes import ROOT, Launcher
from fault_injection.trial import Fault, Trials

TABLE = ROOT / "benchmarks" / "faults.md"
_HEAD = """# Faults of real runs

`python benchmarks/faults.py` writes this table; its docstring and `benchmarks/fault_injection/moments.py` explain the
columns and moments. Each row is a real run on a CPU, one device per process. "Resumed" is the step from which the next
start, or after damage to files this start, went on. "Equal" compares parameters and metrics at the end bit by bit with
those of an undisturbed run of as many processes. Damage that the command refuses leaves all files untouched.

| fault | moment | processes | exit code | last line | resumed | equal |
|---|---|---:|---|---|---:|---|
"""


def main() -> int:
    """Runs the faults that have no row yet, and writes the table if all were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(tempfile.gettempdir()) / "mmjax-faults"
    parser.add_argument("--work", type=pathlib.Path, default=default, help="folder of runs, caches and rows")
    parser.add_argument("--quick", action="store_true", help="the short form: four faults, no table")
    parser.add_argument("--only", default="", help="faults whose description contains this text; no table")
    parser.add_argument("--seeds", default="0,1", help="seeds of the faults at random moments")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--again", action="store_true", help="run faults again that have a row")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [
        fault
        for fault in faults([int(seed) for seed in options.seeds.split(",")])
        if options.only in fault.key and (fault.quick or not options.quick)
    ]
    path = options.work.absolute() / "rows.jsonl"
    lock = (options.work / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another command works in {options.work}; wait for it, or give another --work")
    rows = {} if options.again else _read(path)
    todo = sorted((fault for fault in chosen if fault.key not in rows), key=lambda fault: -fault.processes)
    rows |= _run(todo, options.work.absolute(), options.jobs, path) if todo else {}
    found = [rows[fault.key] for fault in chosen]
    wrong = [row for row in found if row["problems"]]
    for row in wrong:
        print(f"\n{row['key']}: {'; '.join(row['problems'])}")
    print(f"{len(found)} faults, {len(found) - len(wrong)} as expected")
    if not options.quick and not options.only:
        TABLE.write_text(_HEAD + "".join(map(format_row, found)))
    return 1 if wrong else 0


def _read(path: pathlib.Path) -> dict[str, dict]:
    """Reads the rows of earlier commands that ended as expected."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {row["key"]: row for row in map(json.loads, lines)}
    return {key: row for key, row in rows.items() if not row["problems"]}


def _run(todo: list[Fault], work: pathlib.Path, jobs: int, path: pathlib.Path) -> dict[str, dict]:
    launcher, lock, rows = Launcher(work), threading.Lock(), {}
    trials = Trials(launcher, work)

    def run(fault: Fault) -> None:
        try:
            row = trials.run(fault)
        except Exception as error:
            row = {"key": fault.key, "problems": [f"{type(error).__name__}: {error}"]}
        with lock, path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            rows[fault.key] = row
            print(f"{len(rows)}/{len(todo)} {fault.key}: {'; '.join(row['problems']) or 'as expected'}", flush=True)

    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        list(pool.map(run, todo))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        launcher.close()
    return rows


def format_row(row: dict) -> str:
    """Returns a line of the table."""
    if "codes" not in row:
        return f"| {row['key']} | | | | {'; '.join(row['problems'])} | | |\n"
    codes = ", ".join("hangs" if code is None else _code(code) for code in row["codes"])
    processes = str(row["processes"]) + (f", fault in {row['victim']}" if row["processes"] > 1 else "")
    said = "; ".join(filter(None, [row["last line"], *row["notes"]])).replace("|", "\\|")
    cells = [row["fault"], row["moment"], processes, codes, said, str(row["resumed"]), row["equal"]]
    return f"| {' | '.join(cells)} |\n"


def _code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else str(code)


if __name__ == "__main__":
    sys.exit(main())
