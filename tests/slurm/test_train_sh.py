"""`sbatch slurm/train.sh` on a real SLURM."""

import json

import pytest
from support.launching import TINY, deviation, newest_tensors, train_alone

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow]


def test_two_nodes_of_two_ranks_train_to_the_weights_of_one_process(slurm, tmp_path):
    run = tmp_path / "run"
    job = slurm.train("--nodes=2", *TINY, "--run_dir", run, "--images", 320, RANKS_PER_NODE=2)
    fields = slurm.end(job)
    log = slurm.log(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), log
    assert "the training is complete" in log
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["world_size"], facts["slurm_job"]) == (4, job)

    train_alone(tmp_path / "alone", "--images", 320)
    assert (run / "DONE").read_text() == (tmp_path / "alone/DONE").read_text() == "320\n"
    assert deviation(newest_tensors(run), newest_tensors(tmp_path / "alone")) < 1e-9


def test_wrong_options_end_a_job_at_once_in_one_line(slurm, tmp_path):
    run = tmp_path / "run"
    typo = slurm.train("--nodes=1", *TINY, "--run_dir", run, "--image", 320)
    world = slurm.train("--nodes=1", *TINY, "--run_dir", run, "--world_size", 4, RANKS_PER_NODE=2)
    shards = slurm.train("--nodes=1", *TINY, "--run_dir", run, "--data.shards", tmp_path / "none.tar")
    for job in (typo, world, shards):
        fields = slurm.end(job)
        assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0")
        assert fields["ExitCode"] == ("2:0" if job != shards else "1:0")
        assert slurm.log(job).count("\n") == 1, slurm.log(job)
    assert "--images" in slurm.log(typo)
    assert slurm.log(world) == (
        "error: --world_size 4, but 2 ranks are to be launched; change one of them, or leave --world_size out\n"
    )
    assert "none.tar" in slurm.log(shards)
    assert not run.exists()


def test_a_cancelled_job_saves_and_stays_away(slurm, tmp_path):
    """Here with a single rank, for which there is no rendezvous."""
    run = tmp_path / "run"
    job = slurm.train("--nodes=1", *TINY, "--run_dir", run, "--images", 10**9, "--log.every", 16)
    slurm.wait(job, lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    slurm.call("scancel", job)
    fields = slurm.end(job)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0"), slurm.log(job)
    reached, reason = (run / "PREEMPTED").read_text().splitlines()[:2]
    assert int(reached) == int((run / "checkpoints/latest").read_text()) > 0
    assert reason == "SIGTERM"
    assert json.loads((run / "environment.json").read_text())["world_size"] == 1
