"""What the doctor concludes from facts, of machines that the tests do not run on."""

from dataclasses import replace

import pytest

from dcgan_dist.commands.doctor import disk, hardware, memory, outside, ranks, shards
from dcgan_dist.commands.doctor.finding import conclude, fail, warn
from dcgan_dist.commands.doctor.talk import Talk
from dcgan_dist.data.checking.verify import Problem
from dcgan_dist.parallel.precision import PRECISIONS
from dcgan_dist.run.wandb_key import Answer

GB = 1e9
H100 = hardware.Gpu(name="H100", memory=80_000_000_000, free=79_000_000_000)
A100 = replace(H100, name="A100")
NODE = {"gpus": [H100] * 4, "why_none": "", "ranks": 4, "cores": 64, "threads": 64}
SPACE = {"free": 10 * GB, "checkpoint": GB, "keep": 3, "held": 0, "samples": GB / 2}
CACHE = {"folder": disk.Path("cache"), "shards": 8 * GB, "limit": 10 * GB, "free": 12 * GB}
LOOKED = {"found": "9 images", "checked": 1.0, "images": 20, "problems": (), "deep": False}
MEMORY = {"available": 100 * GB, "each": 2 * GB, "once": 2 * GB, "ranks": 4, "surely": True, "gpu": (70 * GB, 10 * GB)}
LAUNCHER = outside.Launcher(
    launched=0, gpus=4, slurm={}, main_address="", main_unknown="", own_name="node1", own_unknown="", busy_port=None,
    wrong="",
)  # fmt: skip
JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "4"}
TALK = Talk(ranks=4, device="cuda", latency=3e-5, rate=100 * GB, deviation=3e-15, tensor="netg/layers.0.weight")
BAD = Problem(shard="0.tar", kind="checksum", what="the bytes are others", key="00007", byte=512)

CASES = {
    "four GPUs": (hardware.judge_devices(**NODE), "ok", "4 x H100 with 80.0 GB, 79.0 GB free; 64 CPU cores", ""),
    "no GPU": (hardware.judge_devices(**NODE | {"gpus": []}), "ok", "no GPU, so the run uses the CPU", ""),
    "a GPU that torch does not see": (
        hardware.judge_devices(**NODE | {"gpus": [], "why_none": "the driver is too old"}), "FAIL",
        "torch cannot use the NVIDIA GPUs of this machine: the driver is too old", "the build of torch",
    ),
    "a GPU that others use": (
        hardware.judge_devices(**NODE | {"gpus": [H100, replace(H100, free=10**9)]}), "warn",
        "other processes use 79.0 GB of the memory of a H100", "nvidia-smi",
    ),
    "unlike GPUs": (hardware.judge_devices(**NODE | {"gpus": [H100, A100]}), "warn", "the GPUs differ", "slowest"),
    "a GPU that torch has no kernels for": (
        hardware.judge_devices(**NODE | {"gpus": [H100, replace(H100, error="no kernel image is available")]}), "FAIL",
        "GPU 1 (H100) cannot compute: no kernel image is available", "support this GPU",
    ),
    "more ranks than cores": (
        hardware.judge_devices(**NODE | {"cores": 2}), "warn", "4 ranks share 2 CPU cores", "one core",
    ),
    "bf16": (hardware.judge_precision(PRECISIONS["bf16"], True), "ok", "bf16: as asked", ""),
    "bf16 emulated": (hardware.judge_precision(PRECISIONS["bf16"], False), "warn", "emulated", "--precision fp16"),
    "bf16 on a CPU": (hardware.judge_precision(PRECISIONS["bf16"], None), "warn", "on a CPU", "--precision auto"),
    "fp64": (hardware.judge_precision(PRECISIONS["fp64"], True), "warn", "for proofs", "--precision auto"),
    "space": (
        disk.judge_space(**SPACE), "ok", "10.0 GB free; up to 4.5 GB needed for 4 checkpoints of 1.0 GB and the s", "",
    ),
    "no space": (
        disk.judge_space(**SPACE | {"free": 4.4 * GB}), "FAIL", "not enough disk space", "--checkpoint.keep 2",
    ),
    "space that the checkpoints hold already": (
        disk.judge_space(**SPACE | {"free": 4.4 * GB, "held": 3 * GB}), "ok", "up to 1.5 GB needed", "",
    ),
    "little space": (disk.judge_space(**SPACE | {"free": 5 * GB}), "warn", "disk space is tight", "another disk"),
    "a disk": (disk.judge_disk(64_000_000, 0.5, GB), "ok", "at 128 MB/s; a checkpoint takes 7.8 s", ""),
    "a slow disk": (disk.judge_disk(64_000_000, 8.0, GB), "warn", "the disk is slow", "faster disk"),
    "a disk that takes nearly as long as launchers wait": (
        disk.judge_disk(64_000_000, 1.4, GB), "warn", "kills its ranks 30 s after a signal", "touch RUN/STOP",
    ),
    "locks that keep nobody out": (
        disk.judge_locks(None, False, option="--run_dir", without=warn), "warn", "no effect: two processes", "nolock",
    ),
    "no locks": (
        disk.judge_locks("No locks available", False, option="--run_dir", without=warn), "warn",
        "files cannot be locked (No locks available)", "-o flock",
    ),
    "a cache without locks": (
        shards.judge_cache(**CACHE, locks=disk.judge_locks("No locks", False, option="--data.cache", without=fail)),
        "FAIL", "files cannot be locked (No locks)", "--data.cache",
    ),
    "a cache whose locks keep nobody out": (
        shards.judge_cache(**CACHE, locks=disk.judge_locks(None, False, option="--data.cache", without=fail)), "warn",
        "no effect", "-o flock",
    ),
    "a cache with locks": (
        shards.judge_cache(**CACHE, locks=disk.judge_locks(None, True, option="--data.cache", without=fail)), "ok",
        "8.0 GB of", "",
    ),
    "shards": (shards.judge_shards(**LOOKED), "ok", "9 images; 20 images checked", ""),
    "a bad shard": (
        shards.judge_shards(**LOOKED | {"problems": (BAD,) * 5}), "FAIL",
        "0.tar: 00007 at byte 512: the bytes are others | 0.tar", "--repair",
    ),
    "no time for all shards": (
        shards.judge_shards(**LOOKED | {"checked": 0.6}), "warn", "time for 60% of the shards", "verify",
    ),
    "shards of another program": (
        shards.judge_shards(**LOOKED | {"images": 0}), "warn", "the images have no checksums", "--deep",
    ),
    "a cache": (shards.judge_cache(**CACHE), "ok", "8.0 GB of shards; cache may use 10.0 GB and has 12.0 GB", ""),
    "a cache for a part": (
        shards.judge_cache(**CACHE | {"limit": 2 * GB}), "warn", "only 25% of the shards", "in every epoch",
    ),
    "a cache on a full disk": (shards.judge_cache(**CACHE | {"free": GB}), "FAIL", "less space", "--data.cache"),
    "memory": (
        memory.judge_memory(**MEMORY), "ok", "100.0 GB available; 4 ranks on this machine will use about 10.0 GB", "",
    ),
    "too little memory": (
        memory.judge_memory(**MEMORY | {"available": 9 * GB}), "FAIL", "not enough memory", "--mem",
    ),
    "too little for ranks that may be meant for several machines": (
        memory.judge_memory(**MEMORY | {"available": 9 * GB, "surely": False}), "warn",
        "not enough memory if all 4 ranks run on this machine", "under its launcher",
    ),
    "too little even for one of them": (
        memory.judge_memory(**MEMORY | {"available": 2 * GB, "surely": False}), "FAIL", "not enough memory", "--mem",
    ),
    "tight memory": (
        memory.judge_memory(**MEMORY | {"available": 11 * GB}), "warn", "memory is tight", "fewer ranks",
    ),
    "too little on the GPU": (
        memory.judge_memory(**MEMORY | {"gpu": (9 * GB, 10 * GB)}), "FAIL", "not enough GPU memory", "--accumulate",
    ),
    "shared memory": (memory.judge_shared_memory(GB, 8), "ok", "1.0 GB free", ""),
    "Docker's 64 MB": (memory.judge_shared_memory(6.4e7, 2), "warn", "NCCL may need", "--shm-size"),
    "64 MB for the CPU": (memory.judge_shared_memory(6.4e7, 0), "ok", "64.0 MB", ""),
    "no shared memory": (memory.judge_shared_memory(None, 0), "FAIL", "no /dev/shm", "remount"),
    "full shared memory": (memory.judge_shared_memory(0, 0), "FAIL", "/dev/shm is full", "remount"),
    "W&B": (outside.judge_wandb(Answer(True, True, "host takes the key"), True), "ok", "online: host takes", ""),
    "a wrong key": (
        outside.judge_wandb(Answer(True, False, "host refuses the key"), True), "FAIL", "kept offline", "wandb login",
    ),
    "no W&B, though asked for": (
        outside.judge_wandb(Answer(False, False, "no answer"), True), "FAIL", "no answer", "--wandb.mode offline",
    ),
    "no W&B": (outside.judge_wandb(Answer(False, False, "no answer"), False), "warn", "no answer", "wandb sync"),
    "alone": (outside.judge_launcher(LAUNCHER), "ok", "this process is alone; no scheduler's job", ""),
    "launched": (outside.judge_launcher(replace(LAUNCHER, launched=4, slurm=JOB)), "ok", "4 ranks were launched", ""),
    "one of two nodes": (
        outside.judge_launcher(replace(LAUNCHER, slurm=JOB | {"SLURM_NNODES": "2"})), "warn", "only 1 of 2", "srun",
    ),
    "GPUs of the job that are not there": (
        outside.judge_launcher(replace(LAUNCHER, slurm=JOB, gpus=1)), "FAIL", "4 GPUs here, torch sees 1", "devices",
    ),
    "an unknown meeting place": (
        outside.judge_launcher(replace(LAUNCHER, main_address="node0", main_unknown="no such name")), "FAIL",
        "MASTER_ADDR node0 is not known here (no such name)", "IP address",
    ),
    "an unknown own name": (
        outside.judge_launcher(replace(LAUNCHER, own_unknown="no such name")), "warn", "node1", "GLOO_SOCKET_IFNAME",
    ),
    "a busy port": (outside.judge_launcher(replace(LAUNCHER, busy_port=29500)), "FAIL", "29500", "another"),
    "half a launcher": (outside.judge_launcher(replace(LAUNCHER, wrong="WORLD_SIZE=2")), "FAIL", "SIZE=2", "unset"),
    "ranks": (ranks.judge_ranks(TALK, 10**8), "ok", "4 ranks on GPUs (NCCL): 30 us to add up a number, 100.00", ""),
    "late ranks": (ranks.judge_ranks(replace(TALK, latency=0.1), 10**8), "warn", "answer late", "CPU cores"),
    "a slow network": (ranks.judge_ranks(replace(TALK, rate=1e8), 10**8), "warn", "slow", "GLOO_SOCKET_IFNAME"),
    "equal": (ranks.judge_equality(TALK, "global"), "ok", "3e-15 from the weights of one rank", ""),
    "unequal": (
        ranks.judge_equality(replace(TALK, deviation=2e-10), "global"), "FAIL", "worst: netg/layers.0.weight", "report",
    ),
    "not a number": (ranks.judge_equality(replace(TALK, deviation=float("nan")), "global"), "FAIL", "nan", "report"),
    "local statistics": (ranks.judge_equality(TALK, "none"), "warn", "another number of ranks", "global"),
    "statistics of a node": (ranks.judge_equality(TALK, "node"), "warn", "another number of nodes", "global"),
}  # fmt: skip


@pytest.mark.parametrize(("finding", "mark", "found", "advice"), CASES.values(), ids=CASES)
def test_judgement(finding, mark, found, advice):
    assert finding.mark == mark
    assert found in finding.found
    assert advice in finding.advice
    assert bool(finding.advice) == (mark != "ok")


def test_several_problems_are_one_line_as_bad_as_the_worst():
    finding = conclude("facts", None, warn("one", "do this"), fail("two", "do that"))
    assert (finding.mark, finding.found, finding.advice) == ("FAIL", "two; one; facts", "do that\ndo this")
