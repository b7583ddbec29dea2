"""What the doctor concludes from facts, of machines that the tests do not run on."""

from functools import partial

import pytest

from dcgan_dist.commands.doctor import machine, ranks, run_folder, shards
from dcgan_dist.commands.doctor.finding import conclude, fail, warn
from dcgan_dist.data.checking.verify import Problem
from dcgan_dist.run.wandb_key import Answer

GB = 1e9
devices = partial(machine.judge_devices, names=["H100"] * 4, errors=[""] * 4, why_none="", ranks=4, cores=64)
disk = partial(run_folder.judge_disk, free=10 * GB, needed=4.5 * GB, checkpoint=GB, rate=128e6)
cache = partial(shards.judge_cache, folder=run_folder.Path("cache"), shards=8 * GB, limit=10 * GB, free=12 * GB)
looked = partial(shards.judge_shards, found="9 images", images=20, problems=())
memory = partial(
    machine.judge_memory, available=100 * GB, each=2 * GB, once=2 * GB, ranks=4, surely=True, gpu=(70 * GB, 10 * GB)
)
launcher = partial(machine.judge_launcher, env={}, launched=0, gpus=4, wrong="", no_address="")
JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "4"}
communication = partial(ranks.judge_ranks, ranks="4 ranks on GPUs (NCCL)", seconds=0.001, gradients=10**8)
equality = partial(
    ranks.judge_equality,
    ranks="4 ranks on GPUs (NCCL)",
    deviation=3e-15,
    tensor="netg/layers.0.weight",
    sync_batchnorm="global",
)
BAD = Problem(shard="0.tar", kind="checksum", what="the bytes are others", key="00007", byte=512)

CASES = {
    "four GPUs": (devices(), "ok", "4 x H100; 64 CPU cores", ""),
    "no GPU": (
        devices(names=[], errors=[]), "ok", "no GPU, so the run uses the CPU; ", "",
    ),
    "a GPU that torch does not see": (
        devices(names=[], errors=[], why_none="the driver is too old"), "FAIL",
        "torch cannot use the NVIDIA GPUs of this machine: the driver is too old", "the build of torch",
    ),
    "unlike GPUs": (devices(names=["H100", "A100"]), "ok", "1 x H100, 1 x A100", ""),
    "a GPU that torch has no kernels for": (
        devices(errors=["", "no kernel image is available", "", ""]), "FAIL",
        "GPU 1 (H100) cannot compute: no kernel image is available", "support this GPU",
    ),
    "more ranks than cores": (
        devices(cores=2), "warn", "4 ranks share 2 CPU cores", "one core",
    ),
    "a disk": (
        disk(), "ok", "10.0 GB free, up to 4.5 GB needed; a checkpoint of 1.0 GB takes 7.8", "",
    ),
    "no space": (
        disk(free=4.4 * GB), "FAIL", "not enough disk space", "--checkpoint.keep 2",
    ),
    "little space": (disk(free=5 * GB), "warn", "disk space is tight", "another disk"),
    "a slow disk": (disk(rate=8e6), "warn", "the disk is slow", "faster disk"),
    "a disk that takes nearly as long as launchers wait": (
        disk(rate=46e6), "warn", "kills its ranks 30 s after a signal", "touch RUN/STOP",
    ),
    "a cache without locks": (
        cache(locks=fail("files cannot be locked", "mount it")), "FAIL",
        "files cannot be locked; 8.0 GB of shards", "mount it",
    ),
    "shards": (looked(), "ok", "9 images; 20 images checked", ""),
    "a bad shard": (
        looked(problems=(BAD,) * 5), "FAIL",
        "0.tar: 00007 at byte 512: the bytes are others | 0.tar", "--repair",
    ),
    "shards of another program": (
        looked(images=0), "warn", "the images have no checksums", "verify --deep",
    ),
    "a cache": (cache(), "ok", "8.0 GB of shards; cache may use 10.0 GB and has 12.0 GB", ""),
    "a cache for a part": (
        cache(limit=2 * GB), "warn", "only 25% of the shards", "in every epoch",
    ),
    "a cache on a full disk": (cache(free=GB), "FAIL", "less space", "--data.cache"),
    "memory": (
        memory(), "ok", "100.0 GB available; 4 ranks on this machine will use about 10.0 GB", "",
    ),
    "too little memory": (
        memory(available=9 * GB), "FAIL", "not enough memory", "--mem",
    ),
    "too little for ranks that may be meant for several machines": (
        memory(available=9 * GB, surely=False), "warn",
        "not enough memory if all 4 ranks run on this machine", "under its launcher",
    ),
    "too little even for one of them": (
        memory(available=2 * GB, surely=False), "FAIL", "not enough memory", "--mem",
    ),
    "tight memory": (
        memory(available=11 * GB), "warn", "memory is tight", "fewer ranks",
    ),
    "too little on the GPU": (
        memory(gpu=(9 * GB, 10 * GB)), "FAIL", "not enough GPU memory", "--accumulate",
    ),
    "W&B": (machine.judge_wandb(Answer("host accepts the key", True, True), True), "ok", "online: host accepts", ""),
    "a wrong key": (
        machine.judge_wandb(Answer("host refuses the key", True), True), "FAIL", "logged offline", "wandb login",
    ),
    "no W&B, though asked for": (
        machine.judge_wandb(Answer("no answer"), True), "FAIL", "no answer", "--wandb.mode offline",
    ),
    "no W&B": (machine.judge_wandb(Answer("no answer"), False), "warn", "no answer", "wandb sync"),
    "alone": (launcher(), "ok", "one process, without a launcher", ""),
    "launched": (
        launcher(launched=4, env=JOB), "ok",
        "4 ranks were launched; SLURM job 7 on 1 node", "",
    ),
    "one of two nodes": (
        launcher(env=JOB | {"SLURM_NNODES": "2"}), "warn", "only 1 of 2", "srun",
    ),
    "GPUs of the job that are not there": (
        launcher(env=JOB, gpus=1), "FAIL", "4 GPUs on this node, torch sees 1",
        "devices",
    ),
    "an unknown rendezvous": (
        launcher(env={"MASTER_ADDR": "node0"}, no_address="no such name"), "FAIL",
        "MASTER_ADDR node0 has no address here (no such name)", "IP address",
    ),
    "half a launcher": (
        launcher(wrong="WORLD_SIZE=2"), "FAIL", "WORLD_SIZE=2 (environment)", "unset",
    ),
    "ranks": (
        communication(), "ok",
        "4 ranks on GPUs (NCCL): the all-reduce of the gradients (100.0 MB) takes 1.0 ms", "",
    ),
    "a slow network": (communication(seconds=1.0), "warn", "slowly", "GLOO_SOCKET_IFNAME"),
    "equal": (equality(), "ok", "the weights differ by 3e-15 from those of one rank", ""),
    "unequal": (
        equality(deviation=2e-10), "FAIL", "worst: netg/layers.0.weight", "report",
    ),
    "not a number": (equality(deviation=float("nan")), "FAIL", "nan", "report"),
    "local statistics": (
        equality(sync_batchnorm="none"), "warn", "another number of ranks", "global",
    ),
    "statistics of a node": (
        equality(sync_batchnorm="node"), "warn", "another number of nodes", "global",
    ),
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
