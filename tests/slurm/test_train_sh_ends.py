"""What slurm/train.sh does at the end of a job, for every way to end, with stand-ins for SLURM and the trainer.

The ways that are worth a real cluster are in test_train_sh.py.
"""

import os
import signal
import subprocess

import pytest
from support.launching import ROOT, environment
from support.waiting import LIMIT, until

# called once with --dry_run, once for the run folder
PYTHON = """
[[ $1 == -c ]] && exec echo "$RUN"
touch "$RUN.checking"
until [[ -e $RUN.checked ]]; do sleep 0.02; done
echo world_size: 1
"""
STAND_INS = {
    "python": PYTHON,
    "srun": 'eval "$TRAINER"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "scontrol": '[[ $1 == requeue ]] && echo "requeued $2" && exit "${REFUSED:-0}"; echo "node1 NodeAddr=10.0.0.1 x"',
}
WARNED = "kill -USR1 $PPID; until grep -qs 'SLURM job 7' $RUN/STOP; do sleep 0.02; done; "
OWNER = (
    """echo '{\n  "attempt": 1,\n  "slurm_job": "%d",\n  "slurm_restart": %s,\n  "since": "x"\n}' >$RUN/owner.json; """
)
CHECKPOINT = "mkdir -p $RUN/checkpoints; echo 000000200 >$RUN/checkpoints/latest; "
SAVE = OWNER % (7, "null") + CHECKPOINT
ENDS = {
    "complete": ("touch $RUN/DONE", {}, 0, False),
    "warned, saved": (WARNED + SAVE + "touch $RUN/PREEMPTED", {}, 0, True),
    "warned before the first iteration": (WARNED + "touch $RUN/PREEMPTED", {}, 0, True),
    "warned too early ten times": (WARNED + "touch $RUN/PREEMPTED", {"SLURM_RESTART_COUNT": "10"}, 1, False),
    "warned, may not be requeued": (WARNED + SAVE + "touch $RUN/PREEMPTED", {"REFUSED": "1"}, 75, True),
    "warned, crashed while saving": (WARNED + "exit 1", {}, 1, False),
    "preempted by SIGTERM, saved": (SAVE + "touch $RUN/PREEMPTED", {}, 0, True),
    "crashed after a checkpoint": (SAVE + "exit 9", {}, 0, True),
    "crashed before a checkpoint": ("exit 9", {}, 9, False),
    "refused, for another job has the run, and saves": (OWNER % (77, "null") + CHECKPOINT + "exit 1", {}, 1, False),
    "crashed after a checkpoint of its own": (
        OWNER % (7, '"3"') + CHECKPOINT + "exit 1",
        {"SLURM_RESTART_COUNT": "3"},
        0,
        True,
    ),
    "ended for its next restart, which saves": (
        OWNER % (7, '"3"') + CHECKPOINT + "exit 1",
        {"SLURM_RESTART_COUNT": "2"},
        1,
        False,
    ),
    "ended without a word": ("true", {}, 1, False),
    "stopped by hand": (SAVE + "touch $RUN/STOP $RUN/PREEMPTED", {}, 0, False),
    "stopped by hand, then warned": ("touch $RUN/STOP; kill -USR1 $PPID; sleep 0.3; " + SAVE, {}, 0, False),
    "warned after a job that was kept out": (
        "echo SLURM job 8, restart 0 >$RUN/STOP; " + WARNED + SAVE + "touch $RUN/PREEMPTED",
        {},
        0,
        True,
    ),
    "stopped by hand, crashed while saving": (SAVE + "touch $RUN/STOP; exit 1", {}, 1, False),
    "refused": ("exit 2", {}, 2, False),
    "controller away": (SAVE + "touch $RUN/PREEMPTED", {"STATE": " "}, 0, True),
    "cancelled": (SAVE + "touch $RUN/PREEMPTED", {"STATE": "CANCELLED"}, 1, False),
}


@pytest.fixture
def job(tmp_path):
    """Starts the job script in a folder of its own; `checkpoint` is what an earlier attempt left."""
    run, commands = tmp_path / "run", tmp_path / "bin"
    commands.mkdir()
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/latest").write_text("000000100")
    for marker in ("config.yaml", "DONE", "PREEMPTED"):
        (run / marker).touch()  # of an earlier attempt
    processes = []

    def begin(trainer, variables):
        variables_of_job = {
            "SLURM_JOB_ID": 7,
            "SLURM_NNODES": 1,
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_CPUS_ON_NODE": 2,
        }
        variables_of_job |= {
            "SLURM_SUBMIT_DIR": ROOT,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "RUN": run,
            "TRAINER": trainer,
        }
        process = subprocess.Popen(
            ["bash", ROOT / "slurm/train.sh", "--run_dir", run],
            env=environment(**variables_of_job | variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run, begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("end", ENDS)
def test_it_comes_back_exactly_when_it_should(end, job):
    trainer, variables, code, requeued = ENDS[end]
    run, begin = job
    run.with_name("run.checked").touch()
    process = begin(trainer, variables)
    log = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == code, log
    assert ("requeued 7" in log) == requeued, log


def test_it_removes_nothing_from_a_folder_that_another_job_may_have(job):
    run, begin = job
    (run / "STOP").touch()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    run.with_name("run.checked").touch()
    process = begin("exit 2", {})
    log = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 2, log
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "not requeued (exit code 2)" in log


def test_the_warning_names_the_restart_that_is_meant(job):
    run, begin = job
    run.with_name("run.checked").touch()
    process = begin(WARNED + "touch $RUN/PREEMPTED", {"SLURM_RESTART_COUNT": "3"})
    log = process.communicate(timeout=LIMIT)[0]
    assert "requeued 7" in log
    assert (run / "STOP").read_text() == "SLURM job 7, restart 3\n"


def test_a_warning_that_comes_while_the_options_are_checked_is_not_lost(job):
    run, begin = job
    process = begin("until [[ -e $RUN/STOP ]]; do sleep 0.02; done; touch $RUN/PREEMPTED", {})
    until(run.with_name("run.checking").exists)
    process.send_signal(signal.SIGUSR1)
    run.with_name("run.checked").touch()
    log = process.communicate(timeout=LIMIT)[0]
    assert process.returncode == 0, log
    assert "requeued 7" in log
