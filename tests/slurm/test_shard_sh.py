"""`sbatch slurm/shard.sh` on a real SLURM: an array of parts, and the job that completes the set."""

import pytest
from support.folders import contents, make_pictures

from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow]


def submit(slurm, sbatch_options, *options, **variables):
    """The number of a job, whose logs lie in NUMBER_TASK.log, or NUMBER.log of a job without tasks."""
    log = slurm.logs / ("%A_%a.log" if "--array" in sbatch_options else "%j.log")
    command = ["sbatch", "--parsable", "--output", log, *sbatch_options.split(), "slurm/shard.sh", *options]
    return slurm.call(*command, **variables)


def logs(slurm, job):
    return "".join(path.read_text() for path in sorted(slurm.logs.glob(f"{job}*.log")))


def test_an_array_of_parts_and_its_merge_give_the_files_of_one_command(slurm, tmp_path):
    pictures, out = make_pictures(tmp_path / "in", 40), tmp_path / "out"
    options = [pictures, out, "--size", 12, "--shard_size", 4]
    # two of three parts, as if one task had failed; then that task again
    first = submit(slurm, "--array=1,3", *options, PARTS=3)
    slurm.end(first)
    early = submit(slurm, "--nodes=1", "--merge", out)
    assert slurm.end(early)["ExitCode"] == "1:0"
    assert "run part 2/3 again, then merge" in logs(slurm, early), logs(slurm, first)
    again = submit(slurm, "--array=1-3", *options)
    merge = submit(slurm, f"--dependency=afterok:{again}", "--merge", out)
    assert slurm.end(merge)["JobState"] == "COMPLETED", logs(slurm, again) + logs(slurm, merge)
    assert "part 2/3: " in logs(slurm, again)
    assert "resuming: 4 of 4 shards are complete" in logs(slurm, again)
    assert "40 images in 10 shards" in logs(slurm, merge)
    write_shards(find_source(str(pictures)), tmp_path / "one", Packing(size=12, shard_size=4, processes=1))
    assert contents(out) == contents(tmp_path / "one")


def test_wrong_options_end_a_job_in_one_line(slurm, tmp_path):
    pictures = make_pictures(tmp_path / "in", 6)
    gap = submit(slurm, "--array=2-3", pictures, tmp_path / "out", "--size", 12)
    size = submit(slurm, "--nodes=1", pictures, tmp_path / "out")
    for job in (gap, size):
        assert slurm.end(job)["ExitCode"] == "2:0"
    line = (
        "error: the tasks of the array are not 1 to N: use --array=1-N, or set PARTS=N to the total number of parts\n"
    )
    assert logs(slurm, gap) == line * 2
    assert logs(slurm, size).startswith("error: --size is missing")
    assert logs(slurm, size).count("\n") == 1
    assert not (tmp_path / "out").exists()
