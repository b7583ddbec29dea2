"""Memory is counted before any is taken."""

import resource
import subprocess
import sys

import pytest
import torch
from support.shards import write_ours
from support.waiting import LIMIT

from dcgan_dist import cli, train
from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.data.system import cgroups
from dcgan_dist.errors import UsageError
from dcgan_dist.gan.networks import NetD, NetG
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import launch
from dcgan_dist.run import memory

GB = 1e9


@pytest.fixture
def said(monkeypatch):
    """On a machine with 8 GB, half of which are free."""
    monkeypatch.setattr(memory, "total_memory", lambda: 8 * GB)
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * GB)
    return []


def require(said, *options: str) -> None:
    config, world = cli.load(options), launch(Config())
    memory.require_memory(config, arithmetic(config.precision, world.device), world, said.append)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model.ngf 20000", "TB for the networks (--model.nz 100, --model.ngf 20000, --model.ndf 64); lower them"),
        ("--model.nz 60000 --model.ngf 512", "GB for the networks (--model.nz 60000, --model.ngf 512, --model.ndf 64)"),
        ("--batch_size 100000", "GB for their outputs (--batch_size 100000, --accumulate 1)"),
        ("--log.samples 10000 --model.image_size 256", "GB for pictures (--log.samples 10000)"),
        ("--data.prefetch 9999", "GB for reading ahead (--data.prefetch 9999, --data.workers 0, --batch_size 128)"),
        ("--data.workers 1000 --data.decode processes", "--data.workers 1000"),
    ],
)
def test_what_cannot_fit_is_refused_by_the_options_that_ask_for_it(said, options, words):
    with pytest.raises(UsageError) as error:
        require(said, *options.split())
    line = str(error.value)
    assert " of memory are needed at least, and there is 8.0 GB: " in line
    assert words in line
    assert ("the networks" in line) == ("model.n" in options)  # what takes little is not named


def test_what_may_not_fit_is_warned_of(said):
    require(said, "--batch_size", "128")
    assert said == []
    require(said, "--batch_size", "512")
    (line,) = said
    assert line.startswith("WARNING: this run may need 5.")
    assert line.endswith(" GB of memory here, and 4.0 GB are free: dcgan-dist doctor --only memory")


def test_accumulation_makes_room(said):
    with pytest.raises(UsageError):
        require(said, "--batch_size", "16384")
    require(said, "--batch_size", "16384", "--accumulate", "64")


def test_a_dry_run_counts_one_of_the_ranks_that_it_is_for(said):
    """The others may be on other machines."""
    with pytest.raises(UsageError, match="their outputs"):
        require(said, "--batch_size", "16384")
    require(said, "--batch_size", "16384", "--world_size", "64", "--dry_run")


def test_the_limit_of_a_process_is_for_one_rank_and_the_machine_for_all(said, monkeypatch):
    world = launch(Config())
    node = type("World", (), {"device": world.device, "size": 4, "local_size": 4, "everywhere": lambda _, act: act()})()
    config, chosen = Config(batch_size=4_096), arithmetic("fp32", world.device)
    need = memory.estimate(config, chosen, ranks=4, on_gpu=False)
    one = sum((need.computing | need.reading | need.showing).values())
    assert 2 * one < 8 * GB
    monkeypatch.setattr(memory, "total_memory", lambda: 5 * one)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (int(1.1 * one), -1))
    memory.require_memory(config, chosen, node, said.append)  # pyright: ignore
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (int(0.9 * one), -1))
    with pytest.raises(UsageError, match="are needed at least, and by ulimit a process may have"):
        memory.require_memory(config, chosen, node, said.append)  # pyright: ignore
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (-1, -1))
    monkeypatch.setattr(memory, "total_memory", lambda: 3 * one)
    with pytest.raises(UsageError, match="are needed at least, and there is"):
        memory.require_memory(config, chosen, node, said.append)  # pyright: ignore


def test_a_gpu_is_asked_for_its_own(said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0.5 * GB, 1 * GB))
    world = launch(Config())
    gpu = type(
        "World", (), {"device": torch.device("cuda"), "size": 1, "local_size": 1, "everywhere": world.everywhere}
    )
    big = Config(batch_size=1_024)
    with pytest.raises(
        UsageError, match=r"needed at least, and a GPU has 1\.0 GB: .* their outputs \(--batch_size 1024"
    ):
        memory.require_memory(big, arithmetic("fp32", torch.device("cpu")), gpu(), said.append)  # pyright: ignore


@pytest.mark.parametrize("model", [ModelConfig(), ModelConfig(image_size=96, spectral_norm=True, d_norm="layer")])
def test_what_is_needed_at_least_is_needed_indeed(model):
    """An estimate that is too high would refuse what fits: autograd keeps more than is counted."""
    images = 4
    need = memory.estimate(
        Config(model=model, batch_size=images), arithmetic("fp32", torch.device("cpu")), ranks=1, on_gpu=False
    )
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    netg, netd = NetG(model), NetD(model)
    held = []  # all at once, so that no memory is used twice
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fake = netg(torch.randn(images, model.nz, 1, 1))
        held += [netd(fake.detach()), netd(torch.rand_like(fake))]
    (outputs,) = [taken for name, taken in need.computing.items() if "outputs" in name]
    assert 0 < outputs <= sum(kept.values())


def test_all_there_is_by_machine_job_and_shell(tmp_path, monkeypatch):
    assert memory.available_memory() <= memory.total_memory() < 1e14
    (tmp_path / "cgroup/job").mkdir(parents=True)
    (tmp_path / "cgroup/job/memory.max").write_text("3000000")
    (tmp_path / "cgroup/job/memory.current").write_text("1000000")
    (tmp_path / "own").write_text("0::/job\n")
    monkeypatch.setattr(cgroups, "MOUNTS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    assert (memory.total_memory(), memory.available_memory()) == (3e6, 2e6)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2_000_000, 2_000_000))
    assert (memory.total_memory(), memory.process_limit()) == (3e6, 2e6)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_training_refuses_before_it_begins(tmp_path, monkeypatch, capsys, said, dry):
    shard = write_ours(tmp_path / "a.tar", 8)
    options = ["--run_dir", tmp_path / "run", "--data.shards", shard, "--batch_size", "8", "--model.ngf", "30000"]
    assert train.main([str(option) for option in (*options, *dry)]) == 2
    assert capsys.readouterr().err.startswith("error: 12.")
    assert not (tmp_path / "run" / "config.yaml").exists()


LIMITED = """
import resource, sys
from pathlib import Path
from dcgan_dist import train
from dcgan_dist.parallel.shutdown import leave

taken = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
limit = int(taken.split()[1]) * 1024 + 150_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
leave(train.main(sys.argv[1:]))
"""


def test_a_shell_that_limits_memory_gets_one_line(tmp_path):
    shard = write_ours(tmp_path / "a.tar", 8)
    options = ["--run_dir", tmp_path / "run", "--data.shards", shard, "--images", "640", "--data.workers", "200"]
    more = ["--wandb.mode", "disabled", "--trackers=wandb"]
    command = [sys.executable, "-c", LIMITED, *map(str, options), *more]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING: this run may need ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: out of memory, threads or processes (")
