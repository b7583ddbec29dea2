"""`dcgan-dist launch`: its options, and those of a file of Accelerate. What ranks do: tests/parallel, tests/launch."""

import os
import shlex
import sys

import pytest

from dcgan_dist import __main__ as front
from dcgan_dist.commands import launch
from dcgan_dist.parallel.variables import MARK


class StartedError(Exception):
    """In place of ranks."""


@pytest.fixture
def started(monkeypatch):
    """Runs the command with these arguments up to its ranks; returns their command and environments."""
    before = dict(os.environ)

    def started(command, environments):
        raise StartedError(command, environments)

    monkeypatch.setattr(launch, "run", lambda command, job, given: started(command, job.environments(given)))
    monkeypatch.setattr(os, "execve", lambda _, command, environment: started(command, [environment]))
    monkeypatch.setattr(launch.signal, "pthread_sigmask", lambda *_: None)

    def start(line):
        with pytest.raises(StartedError) as caught:
            front.main(["launch", *line.split()])
        command, environments = caught.value.args
        assert command[:2] == [sys.executable, "-m"]
        return command[2:], environments

    yield start
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num_processes 1e9", "--num_processes 1000000000: must be from 1 to 1024"),
        ("--num_machines 1e9", "--num_machines 1000000000: must be from 1 to 1024"),
        ("--gpu_ids ''", "--gpu_ids: '': is empty; give a value, or leave it out"),
        ("--main_process_ip ''", "--main_process_ip: '': is empty; give a value, or leave it out"),
        ("--config_file ''", "--config_file: '': is empty; give a value, or leave it out"),
        ("--num_processes x", "--num_processes: x: must be an integer"),
        ("--num_processes", "--num_processes: expected one argument"),
        ("--num_processes 0", "--num_processes 0: must be from 1 to 1024"),
        ("--num_processes -2", "--num_processes -2: must be from 1 to 1024"),
        ("--num_machines two", "--num_machines: two: must be an integer"),
        ("--num_machines 2", "--num_machines 2 needs --main_process_ip, the address of machine 0"),
        ("--num_machines 2 --num_processes 3", "--num_processes 3: must be a multiple of --num_machines 2"),
        ("--machine_rank 1", "--machine_rank 1: must be from 0 to 0"),
        ("--main_process_port abc", "--main_process_port: abc: must be an integer"),
        ("--main_process_port 99999", "--main_process_port 99999: must be from 0 to 65535"),
        ("--cpu --multi_gpu", "--cpu and --multi_gpu: give one of them"),
        ("-m other.module", "-m other.module: dcgan-dist launch starts the ranks of dcgan_dist.train, or of a command"),
        ("--images 5 -m dcgan_dist.train", "--images: is before -m, but is no option of dcgan-dist launch"),
        ("--num_processes 2 --batch_sze 4", "there is no option --batch_sze; did you mean --batch_size?"),
        ("--num_processes 2 --batch_size 5", "--batch_size 5 does not divide evenly over 2 ranks"),
        ("--num_processes 2 --world_size 4", "--world_size 4, but 2 ranks are to be launched"),
        ("--config_file nowhere.yaml", "--config_file nowhere.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_rank_starts(line, message, capsys):
    assert front.main(["launch", *shlex.split(line)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert (printed.out, printed.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_processes: two", "{}: --num_processes: two: must be an integer"),
        ("num_processes: 0", "--num_processes 0: must be from 1 to 1024"),
        ("num_procs: 2", "--config_file {}: num_procs: 2 is not for dcgan-dist launch; leave it out"),
        ("distributed_type: FSDP", "--config_file {}: distributed_type: FSDP is not for dcgan-dist launch"),
        ("fsdp_config: {fsdp_version: 2}", "--config_file {}: fsdp_config: {'fsdp_version': '2'} is not"),
        ("- 2", "--config_file {}: must be a mapping of options"),
        ("{", "--config_file {}: is not YAML"),
        ("config_file: x", "--config_file {}: config_file: x is not for dcgan-dist launch"),
    ],
)
def test_a_file_that_is_wrong_is_named(text, message, tmp_path, capsys):
    file = tmp_path / "accelerate.yaml"
    file.write_text(text)
    assert front.main(["launch", "--config_file", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message.replace('{}', str(file), 1)}")
    assert error.count("\n") == 1


def test_ranks_get_their_variables_and_the_trainers_options(started):
    command, environments = started("--images 64 --cpu --num_processes 2 --log.every 32")
    assert command == ["dcgan_dist.train", "--images", "64", "--log.every", "32", "--world_size=2"]
    assert [(each["RANK"], each["WORLD_SIZE"], each["CUDA_VISIBLE_DEVICES"]) for each in environments] == [
        ("0", "2", ""),
        ("1", "2", ""),
    ]
    place = [(each["MASTER_ADDR"], int(each["MASTER_PORT"]) > 0) for each in environments]
    assert place == [("127.0.0.1", True)] * 2
    line = "--num_machines 2 --machine_rank 1 --main_process_ip host --num_processes 4 -m dcgan_dist.train"
    ranks = [(each["RANK"], each["MASTER_ADDR"], each["MASTER_PORT"]) for each in started(line)[1]]
    assert ranks == [("2", "host", "29500"), ("3", "host", "29500")]


@pytest.mark.parametrize("line", ["--cpu --images 64", "--num_processes 1 -m dcgan_dist.train --images 64"])
def test_one_rank_is_this_process_and_meets_nobody(line, started, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "0")
    command, [environment] = started(line)
    assert command == ["dcgan_dist.train", "--images", "64"]
    assert MARK in environment
    assert not environment.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def test_a_dry_run_is_one_ranks(started):
    command, environments = started("--num_processes 4 --dry_run")
    assert command == ["dcgan_dist.train", "--dry_run", "--world_size=4"]
    assert len(environments) == 1


def test_hyphens_are_underscores(started):
    command, environments = started("--num-processes 2 --cpu --main-process-port=7 --num-cpu-threads-per-process 1")
    assert command == ["dcgan_dist.train", "--world_size=2"]
    assert [(each["MASTER_PORT"], each["OMP_NUM_THREADS"]) for each in environments] == [("7", "1")] * 2


def test_other_commands_are_launched_too(started):
    command, environments = started("--cpu --num_processes 2 -m dcgan_dist doctor --only ranks")
    assert command == ["dcgan_dist", "doctor", "--only", "ranks"]
    assert len(environments) == 2


def test_a_file_stands_for_options_and_options_win(started, tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: NO\ndowncast_bf16: 'no'\nenable_cpu_affinity: false\n"
        "fsdp_config: {}\ngpu_ids: all\nmachine_rank: 0\nmain_training_function: main\nmixed_precision: bf16\n"
        "num_machines: 1\nnum_processes: 2\nrdzv_backend: static\nsame_network: true\nuse_cpu: true\ndebug: false\n"
    )
    assert len(started(f"--config_file {file} --cpu --mixed_precision no")[1]) == 2
    _, environments = started(f"--config_file {file}")
    assert [each["ACCELERATE_MIXED_PRECISION"] for each in environments] == ["bf16"] * 2
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == [""] * 2
    assert len(started(f"--config_file {file} --num_processes 3 --batch_size 12")[1]) == 3


def test_what_accelerate_is_asked_for_reaches_the_trainer(started, capsys):
    """Which obeys it, or refuses it before any rank starts; all of it: tests/test_settings.py."""
    _, environments = started("--gradient_accumulation_steps 4 --cpu --num_processes 2")
    assert [each["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] for each in environments] == ["4"] * 2
    assert front.main(["launch", "--use_fsdp", "--cpu", "--num_processes", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: ACCELERATE_USE_FSDP=true (accelerate launch --use_fsdp")


def test_all_gpus_are_used_unless_a_number_is_given(started, monkeypatch, capsys):
    monkeypatch.setattr(launch, "gpus_here", lambda: 4)
    assert len(started("--multi_gpu")[1]) == 4
    assert len(started("")[1]) == 4
    _, environments = started("--gpu_ids 0,2 --num_processes 2")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["0,2"] * 2
    assert front.main(["launch", "--multi_gpu", "--num_processes", "8"]) == 2
    assert capsys.readouterr().err.startswith("error: torch finds 4 GPUs here, for 8 to be launched; ")


def test_the_configuration_of_this_repository_is_taken(started):
    _, environments = started("--config_file accelerate_config.yaml")
    assert len(environments) == 1
