"""Files in `launch/`: jobs are valid against Kubernetes' own schema, and their commands exist."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess

import kubernetes_validate
import pytest
import yaml

from mmjax.config import build
from mmjax.errors import ExitCode
from mmjax.experiment import ExperimentConfig, plain
from mmjax.recipe import load_recipe

ROOT = pathlib.Path(__file__).parent.parent
SBATCH = ROOT / "launch" / "slurm.sbatch"


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())


def test_the_jobs_of_the_jobset_are_valid_and_nothing_else_is_in_it(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"} and len(jobset["spec"]["replicatedJobs"]) == 1
    for replicated in jobset["spec"]["replicatedJobs"]:
        assert set(replicated) == {"name", "replicas", "template"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.33", strict=True)
        wrong = {**job, "spec": {**job["spec"], "parallellism": 3}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, "1.33", strict=True)


def test_the_jobset_asks_for_the_chips_of_its_mesh(jobset):
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    sides = [int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    command, *flags = container["args"]
    options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert command == "train" and job["completions"] == job["parallelism"]
    chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
    assert chips == sides[0] * sides[1] == int(options["config.mesh.fsdp"])
    assert slices["replicas"] == int(options["config.mesh.slice"])
    recipe = plain(load_recipe(str(ROOT / options["config"]), "--config"))
    recipe["mesh"] |= {"slice": slices["replicas"], "fsdp": chips}
    assert recipe["train"]["batch_size"] % (chips * slices["replicas"]) == 0
    build(ExperimentConfig, recipe, "")


def slurm(folder: pathlib.Path, **programs: str) -> tuple[list[str], dict[str, str]]:
    """Arguments that start the batch script with simulated Slurm programs, and their environment."""
    for name, code in {".venv/bin/mmjax": "exit 1", **{f"bin/{name}": code for name, code in programs.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{code}\n")
        (folder / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return [str(SBATCH), "--config=a b.py"], {**os.environ, "PATH": path, "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize("code", [0, 1, 2, 3, 137])
def test_the_slurm_script_runs_what_it_is_given_on_every_node_and_requeues_what_may_succeed(tmp_path, code):
    words, environment = slurm(tmp_path, srun=f'printf "%s\\n" "$@"; exit {code}', scontrol='echo scontrol "$@"')
    again = ["scontrol requeue 77"] if code in (ExitCode.RESTART, 137) else []
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if again else code), done.stderr
    assert done.stdout.splitlines() == ["--kill-on-bad-exit=1", ".venv/bin/mmjax", "train", *words[1:], *again]
    if again:
        # Not for ever.
        done = subprocess.run(words, cwd=tmp_path, env={**environment, "SLURM_RESTART_COUNT": "100"})
        assert done.returncode == code


def test_the_jobset_restarts_unless_the_run_would_fail_again(jobset):
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    ((end),) = (rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    (container,) = job["template"]["spec"]["containers"]
    assert end["containerName"] == container["name"]
    assert (end["operator"], end["values"]) == ("In", [ExitCode.FAILED, ExitCode.INVALID_INPUT])


# Slurm's behaviour: srun answers SIGTERM with SIGKILL to the task; scancel signals the task, whose pid is in a file.
SRUN = """
while [[ $1 == --* ]]; do shift; done
"$@" & echo $! > task
trap "kill -KILL $!; echo killed" TERM HUP QUIT
while kill -0 $!; do wait $!; code=$?; done 2> /dev/null
exit $code
"""
SCANCEL = 'echo scancel "$@"; while [ ! -s task ]; do sleep 0.01; done; kill -TERM $(cat task)'
TASK = 'trap "echo saved; exit 0" TERM; echo started; while true; do sleep 0.02; done'
REQUEUED = ["scancel --signal=TERM 77", "saved", "scontrol requeue 77"]


def test_the_slurm_script_saves_and_requeues_at_the_time_limit(tmp_path):
    words, environment = slurm(tmp_path, srun=SRUN, scancel=SCANCEL, scontrol='echo scontrol "$@"')
    (tmp_path / ".venv/bin/mmjax").write_text(f"#!/bin/bash\n{TASK}\n")
    started = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "started\n"
    started.send_signal(signal.SIGUSR1)
    assert started.communicate(timeout=240)[0].splitlines() == REQUEUED
    assert started.returncode == 0


def test_the_slurm_script_requeues_at_a_time_limit_during_the_start_of_srun(tmp_path):
    # srun signals its parent, the script, before the script knows srun's pid.
    early = 'kill -USR1 $PPID\n trap "echo saved; exit 0" TERM; echo $$ > task; while true; do sleep 0.02; done'
    words, environment = slurm(tmp_path, srun=early, scancel=SCANCEL, scontrol='echo scontrol "$@"')
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines() == REQUEUED and done.returncode == 0, done.stderr


@pytest.mark.parametrize("words, said", [([], "usage: sbatch"), (["--config=x"], ".venv/bin/mmjax does not exist in")])
def test_the_slurm_script_refuses_what_cannot_run(tmp_path, words, said):
    done = subprocess.run([SBATCH, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
