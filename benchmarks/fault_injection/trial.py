"""One fault: a run that it strikes, the same command again, and the comparison with the undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping

from fault_injection.processes import ROOT, Command, Launcher, free_port, wait_until

RECIPE = ROOT / "benchmarks" / "fault_injection" / "recipe.py"
TRACEBACK = re.compile(r"Traceback \(most recent|Fatal Python error|Segmentation fault")


@dataclasses.dataclass
class Scene:
    """A run while a fault strikes it.

    Attributes:
      launcher: starts further commands.
      workdir: folder of the run.
      commands: its processes; empty before they start.
      victim: the process that is struck.
      duration: seconds that an undisturbed run took.
      notes: remarks for the table.
    """

    launcher: Launcher
    workdir: pathlib.Path
    commands: list[Command]
    victim: int = 0
    duration: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the struck process."""
        self.commands[self.victim].send(number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and what must come of it.

    Attributes:
      name: the fault, for the table.
      strike: does it: before the start, or at `moment`.
      moment: moment at which the struck process waits, see `moments`; "" for none.
      processes: number of processes of the run.
      victim: index of the struck process.
      template: state of the workdir before: "" for none, "stopped" for a run killed after step 11 with checkpoints of
        the steps 4 and 8, "finished" for a complete run.
      codes: allowed exit codes, one tuple per process.
      says: regular expression that the output of each process in `speakers` matches.
      speakers: indices of these processes; None for all that were not killed.
      resumes_at: step at which the next start resumes; None for any.
      untouched: the command refuses the damage, and must leave all files as they are; there is no next start.
      rows: the rows of metrics.jsonl must be those of the undisturbed run; the parameters always must.
      flags: further flags of the run.
      file_bytes: limit of the size of files.
      quick: belongs to the short form.
    """

    name: str
    strike: Callable[[Scene], None] = lambda scene: None
    moment: str = ""
    processes: int = 1
    victim: int = 0
    template: str = ""
    codes: tuple[tuple[int, ...], ...] = ((0,),)
    says: str = ""
    speakers: tuple[int, ...] | None = None
    resumes_at: int | None = None
    untouched: bool = False
    rows: bool = True
    flags: tuple[str, ...] = ()
    file_bytes: int | None = None
    quick: bool = False

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.name}, {self.when}, {self.processes}, {self.victim}"

    @property
    def when(self) -> str:
        """The moment, for the table."""
        if not self.moment:
            return "before the start"
        return self.moment + (", resumed run" if self.template else "")


class Trials:
    """Strikes runs with faults and compares their ends with undisturbed runs.

    Args:
      launcher: starts the commands.
      work: folder of the workdirs.
    """

    def __init__(self, launcher: Launcher, work: pathlib.Path):
        self.launcher, self.work = launcher, work
        self._templates: dict[str, pathlib.Path] = {}
        self._lock = threading.Lock()

    def start(
        self,
        workdir: pathlib.Path,
        processes: int = 1,
        moments: Mapping[int, str] | None = None,
        flags: tuple[str, ...] = (),
        file_bytes: int | None = None,
    ) -> list[Command]:
        """Starts a run as `processes` processes with one device each."""
        port, commands = free_port(), []
        for index in range(processes):
            argv = ["train", f"--config={RECIPE}", f"--workdir={workdir}", *flags]
            if processes > 1:
                argv += [f"--coordinator=127.0.0.1:{port}", f"--process_count={processes}", f"--process_id={index}"]
            commands.append(self.launcher.start(argv, (moments or {}).get(index, ""), file_bytes))
        return commands

    def template(self, name: str, processes: int) -> pathlib.Path:
        """Returns the workdir of a run that was killed after step 11, or of a complete one."""
        with self._lock:
            key = f"{name}-{processes}"
            if key not in self._templates:
                workdir = self.work / "templates" / key
                if not (workdir.parent / f"{key}.done").exists():
                    shutil.rmtree(workdir, ignore_errors=True)
                    moments = {} if name == "finished" else dict.fromkeys(range(processes), "step:11")
                    commands = self.start(workdir, processes, moments)
                    if moments:
                        for command in commands:
                            assert command.reached(), command.output
                        # Checkpoints are committed in the background.
                        assert wait_until(lambda: {"4", "8"} <= _names(workdir / "checkpoints"))
                        for command in commands:
                            command.send(signal.SIGKILL)
                    codes = [command.wait() for command in commands]
                    expected = [-signal.SIGKILL if moments else 0] * processes
                    # The others of a killed process may end by themselves.
                    assert codes == expected or moments, commands[0].output
                    (workdir.parent / f"{key}.done").touch()
                self._templates[key] = workdir
            return self._templates[key]

    def run(self, fault: Fault) -> dict:
        """Strikes a run, starts the command again, and returns a row of the table; `problems` must be empty."""
        truth = ending(self.template("finished", fault.processes))
        workdir = self.work / "runs" / re.sub(r"\W+", "-", fault.key)
        shutil.rmtree(workdir, ignore_errors=True)
        source = self.template(fault.template, fault.processes) if fault.template else None
        if source:
            shutil.copytree(source, workdir)
        scene = Scene(self.launcher, workdir, [], fault.victim, truth["ledger"]["total_seconds"])
        if not fault.moment:
            fault.strike(scene)
        before = _contents(workdir)
        moments = {fault.victim: fault.moment} if fault.moment not in ("", "random") else {}
        scene.commands = self.start(workdir, fault.processes, moments, fault.flags, fault.file_bytes)
        problems = []
        if moments and not scene.commands[fault.victim].reached():
            problems.append(f"the process ended before the moment {fault.moment}")
        elif fault.moment:
            fault.strike(scene)
        scene.commands[fault.victim].go()
        codes = [command.wait() for command in scene.commands]
        outputs = [command.output for command in scene.commands]
        problems += check(fault, codes, outputs)
        again, first = outputs, [scene.commands[0]]
        if fault.untouched:
            if _contents(workdir) != before:
                problems.append("files of the workdir were changed")
        elif any(codes):
            commands = self.start(workdir, fault.processes, flags=fault.flags)
            first.append(commands[0])
            codes_again, again = [command.wait() for command in commands], [command.output for command in commands]
            if any(codes_again):
                problems.append(f"the next start ended with {codes_again}: {last_line(again[0])}")
            if any(TRACEBACK.search(output) for output in again):
                problems.append("traceback of the next start")
        resumed = _resumed(again[0])
        if not fault.untouched and fault.resumes_at is not None and resumed != fault.resumes_at:
            problems.append(f"resumed at step {resumed}, not {fault.resumes_at}")
        found = ending(workdir)
        equal = bool(found) and all(found[name] == truth[name] for name in ("hash", "validation"))
        if fault.untouched:
            pass
        elif not equal:
            problems.append("the parameters or metrics differ from the undisturbed run")
        elif fault.rows and found["rows"] != truth["rows"]:
            problems.append("the rows of metrics.jsonl differ from the undisturbed run")
        row = {
            "key": fault.key,
            "fault": fault.name,
            "moment": fault.when,
            "processes": fault.processes,
            "victim": fault.victim,
            "codes": codes,
            "last line": _without_paths(last_line(outputs[_speaker(fault, codes)]), workdir),
            "notes": scene.notes,
            "resumed": "" if fault.untouched else resumed,
            "equal": "untouched" if fault.untouched else "yes" if equal else "no",
            "seconds": sum(command.seconds for command in first),
            "ledger": found.get("ledger"),
            "problems": problems,
        }
        if problems:
            row["outputs"] = [*outputs, *again]
        else:
            shutil.rmtree(workdir, ignore_errors=True)
        return row


def check(fault: Fault, codes: list[int | None], outputs: list[str]) -> list[str]:
    """Returns what differs from the catalogue: exit codes, messages, tracebacks."""
    problems = []
    allowed = fault.codes if len(fault.codes) > 1 else fault.codes * fault.processes
    for index, (code, expected, output) in enumerate(zip(codes, allowed, outputs, strict=True)):
        if code not in expected:
            problems.append(f"process {index} ended with {code}, not {' or '.join(map(str, expected))}")
        if TRACEBACK.search(output):
            problems.append(f"process {index} printed a traceback")
        speaks = code != -signal.SIGKILL if fault.speakers is None else index in fault.speakers
        if speaks and not re.search(fault.says, output):
            problems.append(f"process {index} does not say {fault.says!r}")
    return problems


def _speaker(fault: Fault, codes: list[int | None]) -> int:
    """Index of the process whose last line the table shows: one that was not killed, if any."""
    if fault.speakers:
        return fault.speakers[0]
    alive = [index for index, code in enumerate(codes) if code is None or code >= 0]
    return alive[0] if alive else fault.victim


def last_line(output: str) -> str:
    """Returns the last line that a command printed about its end, or about its progress; "" if there is none."""
    lines = [" ".join(line.split()) for line in output.splitlines()]
    said = [line for line in lines if line.startswith(("mmjax:", "warning:", "WARNING"))]
    progress = [line.partition(" loss")[0] for line in lines if re.match(r"step \d+/\d+ ", line)]
    return (said or progress or [""])[-1]


def ending(workdir: pathlib.Path) -> dict:
    """Returns the parameters' hash, the metrics, the ledger, and the rows of the log without throughput, or {}."""
    try:
        result = json.loads((workdir / "result.json").read_text())
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    rows = [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]
    rows.sort(key=lambda row: (row["step"], row["split"]))
    found = {"hash": result["parameters_hash"], "validation": result["validation"], "ledger": result["ledger"]}
    return found | {"rows": rows}


def _resumed(output: str) -> int:
    found = re.search(r"resumed at step (\d+)", output)
    return int(found[1]) if found else 0


def _without_paths(line: str, workdir: pathlib.Path) -> str:
    """Replaces the path of the workdir; messages may cut it off."""
    for path in (workdir, *workdir.parents[:-1]):
        line = line.replace(str(path), "WORKDIR")
    return line


def _contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns the content of each file, except of those that every start writes."""
    names = (".lock", "ledger.json", "parameters.txt")
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name not in names]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def _names(folder: pathlib.Path) -> set[str]:
    return {child.name for child in folder.iterdir()} if folder.is_dir() else set()
