"""The faults, and what must come of each."""

from __future__ import annotations

import functools
import pathlib
import signal
from collections.abc import Sequence

from fault_injection import strikes
from fault_injection.strikes import change, delete
from fault_injection.trial import RECIPE, Fault

KILLED, DONE, FAILED, REFUSED, RESTART, INTERRUPTED = (-signal.SIGKILL,), (0,), (1,), (2,), (3,), (130,)
RESUME = "run the same command"


def faults(seeds: Sequence[int]) -> list[Fault]:
    """Returns all faults; those at random moments once per seed."""
    return [
        *_kills(),
        *_requests(),
        *_pauses(),
        *_damaged_checkpoints(),
        *_damaged_files(),
        *_files_lost_while_training(),
        *_full_disks(),
        *_second_runs(),
        *_workers(),
        *_two_processes(),
        *(fault for seed in seeds for fault in _random(seed)),
    ]


def _kills() -> list[Fault]:
    kill = functools.partial(Fault, name="SIGKILL", strike=strikes.kill, codes=(KILLED,))
    return [
        *(kill(moment=moment, resumes_at=0) for moment in ("connect", "start", "lock", "compile", "step:1")),
        kill(moment="step:6", resumes_at=4, quick=True),
        kill(moment="step:8", resumes_at=4),
        kill(moment="saved:8"),
        kill(moment="commit:8", resumes_at=4),
        kill(moment="evaluate:2", resumes_at=4),
        kill(moment="evaluate:4", resumes_at=12),
        kill(moment="result", resumes_at=16),
        kill(moment="restore", template="stopped", resumes_at=8),
        kill(moment="compile", template="stopped", resumes_at=8),
        kill(moment="step:10", template="stopped", resumes_at=8),
    ]


def _requests() -> list[Fault]:
    """Signals that ask a run to stop: it saves first if steps are unsaved, and says where it resumes."""
    term = functools.partial(
        Fault, name="SIGTERM", strike=strikes.ask_to_stop(signal.SIGTERM), codes=(RESTART,), says=RESUME
    )
    ctrl_c = functools.partial(
        Fault, name="Ctrl-C", strike=strikes.ask_to_stop(signal.SIGINT), codes=(INTERRUPTED,), says="interrupted"
    )
    return [
        *(term(moment=moment, resumes_at=0) for moment in ("connect", "start", "lock", "compile")),
        term(moment="step:6", resumes_at=6, quick=True),
        term(moment="commit:8"),
        term(moment="evaluate:2"),
        term(moment="evaluate:5", resumes_at=16),
        term(moment="result", resumes_at=16),
        term(moment="restore", template="stopped", resumes_at=8),
        ctrl_c(moment="compile", resumes_at=0),
        ctrl_c(moment="step:6", resumes_at=6),
        ctrl_c(moment="evaluate:2"),
        ctrl_c(name="Ctrl-C twice", strike=strikes.ask_to_stop(signal.SIGINT, times=2), moment="step:6", resumes_at=4),
        term(name="SIGHUP", strike=strikes.ask_to_stop(signal.SIGHUP), moment="step:6", resumes_at=6),
    ]


def _pauses() -> list[Fault]:
    pause = functools.partial(Fault, name="SIGSTOP, 2 s later SIGCONT", strike=strikes.stop_and_continue(2.0))
    return [pause(moment=moment) for moment in ("compile", "step:6", "commit:8", "evaluate:2")]


def _damaged_checkpoints() -> list[Fault]:
    """Damage to checkpoint 8 of a run that has 4 and 8: 4 is used instead, with a message that names both."""
    eight = "checkpoints/8"
    passed_over = functools.partial(
        Fault, template="stopped", resumes_at=4, says=r"warning: checkpoint 8 .*using checkpoint 4 instead"
    )
    both = [strikes.change_arrays(step, strikes.flip_bit) for step in (4, 8)]
    refused = functools.partial(Fault, template="stopped", codes=(REFUSED,), untouched=True)
    return [
        passed_over(
            name="checkpoint: one bit of each array file flipped",
            strike=strikes.change_arrays(8, strikes.flip_bit),
            quick=True,
        ),
        passed_over(name="checkpoint: array files cut", strike=strikes.change_arrays(8, strikes.cut)),
        passed_over(name="checkpoint: array files zeros", strike=strikes.change_arrays(8, strikes.zeros)),
        passed_over(name="checkpoint: array files lost", strike=delete(f"{eight}/default/ocdbt.process_0")),
        passed_over(
            name="checkpoint: arrays of an older one",
            strike=strikes.copy_folder("checkpoints/4/default", f"{eight}/default"),
        ),
        passed_over(name="checkpoint: index of arrays lost", strike=delete(f"{eight}/default/manifest.ocdbt")),
        passed_over(
            name="checkpoint: index of arrays cut", strike=change(f"{eight}/default/manifest.ocdbt", strikes.cut)
        ),
        passed_over(name="checkpoint: structure cut", strike=change(f"{eight}/default/_METADATA", strikes.cut)),
        passed_over(name="checkpoint: item lost", strike=delete(f"{eight}/default")),
        passed_over(name="checkpoint: metadata cut", strike=change(f"{eight}/_CHECKPOINT_METADATA", strikes.cut)),
        passed_over(
            name="checkpoint: metrics changed", strike=strikes.write(f"{eight}/metrics/metrics", b'{"label/loss": 0.1}')
        ),
        passed_over(
            name="checkpoint: emptied folder",
            strike=strikes.all_of(delete(eight), strikes.write(f"{eight}/x", b""), delete(f"{eight}/x")),
        ),
        Fault(name="checkpoint: newest deleted", template="stopped", strike=delete(eight), resumes_at=4),
        Fault(name="checkpoints deleted", template="stopped", strike=delete("checkpoints"), resumes_at=0),
        Fault(
            name="checkpoint: unfinished one left behind",
            template="stopped",
            strike=strikes.write("checkpoints/12.orbax-checkpoint-tmp/default/x", b"x"),
            resumes_at=8,
        ),
        Fault(
            name="checkpoints: foreign file",
            template="stopped",
            strike=strikes.write("checkpoints/notes.txt", b"x"),
            resumes_at=8,
        ),
        refused(
            name="checkpoints: a bit flipped in each",
            strike=strikes.all_of(*both),
            says="checkpoint 8 .*checkpoint 4 .*restore one",
        ),
        refused(
            name="checkpoints: a file in their place",
            strike=strikes.replace_by_file("checkpoints"),
            says="is not a folder",
        ),
        passed_over(
            name="checkpoint: one bit of each array file flipped",
            strike=strikes.change_arrays(8, strikes.flip_bit),
            processes=2,
            speakers=(0,),
        ),
    ]


def _damaged_files() -> list[Fault]:
    stopped = functools.partial(Fault, template="stopped", resumes_at=8)
    finished = functools.partial(Fault, template="finished", resumes_at=16)
    refused = functools.partial(Fault, template="stopped", codes=(REFUSED,), untouched=True)
    record = "preprocessing/dataset.json"

    def damage_first_row(content: bytes) -> bytes:
        return b"{" + content

    return [
        stopped(
            name="metrics.jsonl: first row damaged",
            strike=change("metrics.jsonl", damage_first_row),
            rows=False,
            says="skipped 1 damaged line",
        ),
        stopped(name="metrics.jsonl: last row cut", strike=change("metrics.jsonl", lambda content: content[:-9])),
        stopped(name="metrics.jsonl: zeros", strike=change("metrics.jsonl", strikes.zeros), rows=False),
        refused(
            name="metrics.jsonl: a folder", strike=strikes.replace_by_folder("metrics.jsonl"), says="is not a file"
        ),
        refused(name="config.json cut", strike=change("config.json", strikes.cut), says="config.json is not JSON"),
        refused(
            name="config.json: not UTF-8",
            strike=strikes.write("config.json", b"\xff\xfe{}"),
            says="config.json is not JSON",
        ),
        refused(
            name="config.json: another run's",
            strike=change("config.json", lambda content: content.replace(b'"seed": 3', b'"seed": 4')),
            says="contains a run with seed = 4, not 3",
        ),
        refused(name="config.json deleted", strike=delete("config.json"), says="contains no run"),
        refused(name="dataset.json cut", strike=change(record, strikes.cut), says="dataset.json"),
        stopped(
            name="ledger.json cut",
            strike=change("ledger.json", lambda content: content[:100]),
            says="ledger.json is damaged",
        ),
        stopped(name="tensorboard: events cut", strike=change("largest:tensorboard", strikes.cut)),
        stopped(name="lock file of a dead process", strike=strikes.write(".lock", b"process 1 on other\n")),
        finished(name="result.json cut", strike=change("result.json", strikes.cut)),
    ]


def _files_lost_while_training() -> list[Fault]:
    lost = functools.partial(Fault, codes=(FAILED,), says="was deleted while the run was training", resumes_at=0)
    return [
        Fault(name="checkpoints deleted", moment="step:6", strike=delete("checkpoints")),
        Fault(
            name="metrics.jsonl deleted",
            moment="step:6",
            strike=delete("metrics.jsonl"),
            rows=False,
            says="metrics.jsonl was deleted",
        ),
        Fault(name="ledger.json deleted", moment="step:6", strike=delete("ledger.json")),
        lost(name="workdir deleted", moment="step:6", strike=delete("")),
        lost(name="workdir deleted", moment="commit:8", strike=delete("")),
    ]


def _full_disks() -> list[Fault]:
    """Limits of the size of files, which reach first the config, then the log, then the checkpoints."""
    full = functools.partial(
        Fault, name="disk full", codes=(FAILED,), says="File too large; free some space, then run the same command"
    )
    return [full(name=f"disk full at {size:,} bytes", file_bytes=size) for size in (500, 9_000, 12_000)]


def _second_runs() -> list[Fault]:
    def argv(workdir: pathlib.Path) -> list[str]:
        return ["train", f"--config={RECIPE}", f"--workdir={workdir}"]

    def other(workdir: pathlib.Path) -> list[str]:
        return [*argv(workdir), "--config.train.steps=32"]

    second = functools.partial(Fault, name="a second run in the workdir")
    return [
        second(moment="step:6", strike=strikes.second_run(argv)),
        second(name="a second, longer run in the workdir", moment="commit:8", strike=strikes.second_run(other)),
    ]


def _workers() -> list[Fault]:
    lost = functools.partial(
        Fault, moment="step:3", codes=(RESTART,), flags=("--config.data.workers=2",), says="data-loading process"
    )
    return [
        lost(name="input worker killed", strike=strikes.strike_worker(strikes.kill_worker)),
        lost(name="input worker stopped", strike=strikes.strike_worker(strikes.stop_worker)),
        lost(
            name="input worker stopped for 2 s",
            strike=strikes.strike_worker(strikes.pause_worker),
            codes=(DONE,),
            says="",
        ),
        Fault(
            name="SIGKILL, with input workers",
            moment="step:6",
            strike=strikes.kill,
            codes=(KILLED,),
            flags=("--config.data.workers=2",),
            resumes_at=4,
        ),
    ]


def _two_processes() -> list[Fault]:
    two = functools.partial(Fault, processes=2)
    dies = functools.partial(two, name="SIGKILL", strike=strikes.kill, victim=1, codes=(RESTART, KILLED))
    dies_first = functools.partial(two, name="SIGKILL", strike=strikes.kill, victim=0, codes=(KILLED, RESTART))
    return [
        dies(moment="compile", says="process 1"),
        dies(moment="step:6", says="process 1 of 2 on .*sent no heartbeat", resumes_at=4),
        dies(moment="evaluate:2", says="process 1 of 2 on ", resumes_at=4),
        dies_first(moment="step:6", says="process 0 of 2", resumes_at=4),
        dies(
            name="SIGSTOP for good",
            strike=strikes.stop_for_good,
            moment="step:6",
            says="process 1 of 2 on .*sent no heartbeat",
            resumes_at=4,
        ),
        two(name="SIGSTOP, 2 s later SIGCONT", strike=strikes.stop_and_continue(2.0), moment="step:6", victim=1),
        two(
            name="SIGTERM",
            strike=strikes.at_random(strikes.ask_to_stop(signal.SIGTERM), seed=1),
            moment="random",
            victim=1,
            codes=((3, 0), (3, 0)),
        ),
        two(
            name="config.json cut",
            template="stopped",
            strike=change("config.json", strikes.cut),
            codes=(REFUSED, REFUSED),
            untouched=True,
            says="is not JSON",
        ),
    ]


def _random(seed: int) -> list[Fault]:
    random = strikes.at_random
    asked = strikes.ask_to_stop(signal.SIGTERM)
    return [
        Fault(
            name=f"SIGKILL, seed {seed}",
            moment="random",
            strike=random(strikes.kill, seed),
            codes=((-signal.SIGKILL, 0),),
        ),
        Fault(name=f"SIGTERM, seed {seed}", moment="random", strike=random(asked, seed + 100), codes=((3, 0),)),
        Fault(
            name=f"SIGSTOP and SIGCONT, seed {seed}",
            moment="random",
            strike=random(strikes.stop_and_continue(2.0), seed + 200),
        ),
    ]
