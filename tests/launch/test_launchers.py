"""The scripts in launch/ and slurm/, and accelerate_config.yaml."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from support.launching import ROOT, TINY, call, deviation, environment, newest_tensors
from support.output import unstamped
from support.waiting import LIMIT

CLUSTER = ROOT / "tests/support/slurm"
SCRIPTS = [path for folder in (ROOT / "launch", ROOT / "slurm", CLUSTER) for path in folder.rglob("*.sh")]
SCRIPTS += (CLUSTER / "bin").iterdir()
OPTIONS = [*TINY, "--images", 64, "--log.every", 32, "--log.samples", 4, "--wandb.mode", "disabled"]
TWO_NODES = {"NODES": 2, "MAIN_ADDR": "127.0.0.1", "RANKS_PER_NODE": 1}

pytestmark = pytest.mark.dist


def world_size(run):
    assert (run / "DONE").read_text() == "64\n"
    return json.loads((run / "environment.json").read_text())["world_size"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of accelerate_config.yaml as it stands."""
    run = tmp_path_factory.mktemp("alone") / "run"
    command = ["accelerate", "launch", "--config_file", "accelerate_config.yaml", "-m", "dcgan_dist.train"]
    done = call(*command, *OPTIONS, "--run_dir", run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return run


TORN_DOWN = """
import atexit, os
class Last:
    def __del__(self, abort=os.abort):
        abort()
if "LOCAL_RANK" in os.environ:
    last = Last()
    atexit.register(lambda: open("put away", "w"))
"""


def test_the_accelerate_config_trains_as_it_stands(alone):
    assert world_size(alone) == 1


def test_two_cpu_ranks_train_from_any_folder(alone, tmp_path):
    # threads of torch may abort a process whose Python is torn down: whatever happens there must not spoil a run
    (tmp_path / "sitecustomize.py").write_text(TORN_DOWN)
    command = (ROOT / "launch/cpu.sh", 2, *OPTIONS, "--run_dir", "run")
    done = call(*command, cwd=tmp_path, PYTHONPATH=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^done: 64 images after \d+ s; pictures in run/samples", unstamped(done.stdout), re.MULTILINE)
    assert (tmp_path / "put away").exists()
    assert world_size(tmp_path / "run") == 2
    assert deviation(newest_tensors(tmp_path / "run"), newest_tensors(alone)) < 1e-9


def test_one_cpu_rank_needs_no_rendezvous(alone, tmp_path):
    done = call(ROOT / "launch/cpu.sh", 1, *OPTIONS, "--run_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert world_size(tmp_path / "run") == 1


def test_two_machines_by_hand(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(part) for part in (ROOT / "launch/multi_node.sh", *OPTIONS, "--run_dir", tmp_path / "run")]
    machines = []
    for rank in (1, 0):
        variables = environment(**TWO_NODES, NODE_RANK=rank, MAIN_PORT=port)
        machines.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    try:
        for machine in machines:
            errors = machine.communicate(timeout=LIMIT)[1]
            assert machine.returncode == 0, errors
    finally:
        for machine in machines:
            machine.kill()
    assert world_size(tmp_path / "run") == 2
    assert deviation(newest_tensors(tmp_path / "run"), newest_tensors(alone)) < 1e-9


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        ("launch/cpu.sh 2 --batch_size 17", {}, "--batch_size 17 does not divide evenly over 2 ranks"),
        ("launch/cpu.sh 1 --model.ngf 0", {}, "--model.ngf 0: must be at least 1"),
        ("launch/multi_gpu.sh --batch_size 17", {"GPUS": 2}, "--batch_size 17 does not divide evenly over 2 ranks"),
        ("launch/multi_node.sh --batch_size 17", TWO_NODES, "--batch_size 17 does not divide evenly over 2 ranks"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(command, variables, message, tmp_path):
    done = call(*command.split(), "--run_dir", tmp_path / "run", NODE_RANK=0, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_another_world_size_in_a_file_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("world_size: 4\n")
    done = call("launch/cpu.sh", 2, *OPTIONS, "--config", tmp_path / "config.yaml")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --world_size 4, but 2 ranks are to be launched; change one of them, or leave --world_size out\n"
    )


@pytest.mark.parametrize(
    ("command", "variables", "message"),
    [
        ("launch/cpu.sh", {}, "usage: launch/cpu.sh N [OPTIONS], with N ranks"),
        ("launch/multi_gpu.sh", {}, "torch finds no GPU here, for 1 to be launched; --cpu --num_processes N needs"),
        ("launch/single_gpu.sh", {}, "torch finds no GPU here, for 1 to be launched; --cpu --num_processes N needs"),
        ("launch/multi_gpu.sh", {"GPUS": "x"}, "GPUS=x: must be an integer"),
        ("launch/multi_node.sh", TWO_NODES | {"NODE_RANK": 0, "NODES": "two"}, "NODES=two: must be an integer"),
        ("launch/multi_node.sh", TWO_NODES | {"NODE_RANK": "b"}, "NODE_RANK=b: must be an integer"),
        ("launch/multi_node.sh", TWO_NODES | {"NODE_RANK": 2}, "--machine_rank 2: must be from 0 to 1"),
        ("launch/multi_node.sh", TWO_NODES | {"NODE_RANK": 0, "RANKS_PER_NODE": "x"}, "RANKS_PER_NODE=x: must be a"),
        ("launch/multi_node.sh", TWO_NODES | {"NODE_RANK": 0, "MAIN_PORT": "abc"}, "MAIN_PORT=abc: must be an integer"),
        (
            "launch/multi_node.sh",
            TWO_NODES | {"NODE_RANK": 0, "MAIN_PORT": 99999},
            "--main_process_port 99999: must be",
        ),
        (
            "slurm/train.sh",
            {"SLURM_SUBMIT_DIR": ".", "SLURM_NNODES": 1, "RANKS_PER_NODE": "x"},
            "RANKS_PER_NODE=x: must",
        ),
        ("launch/multi_node.sh", {"NODES": 2}, "NODE_RANK is not set; usage: NODES=2 NODE_RANK=0 MAIN_ADDR=10.0.0.1"),
        ("slurm/train.sh", {"SLURM_SUBMIT_DIR": "/"}, "run sbatch in the project's folder: sbatch slurm/train.sh"),
    ],
)
def test_a_script_that_is_called_wrongly_shows_its_usage(command, variables, message):
    done = call(command, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_every_script_is_valid():
    for script in SCRIPTS:
        assert call("bash", "-n", script).stderr == ""
        library = script.parent.name == "lib" or script.name == "common.sh"
        assert os.access(script, os.X_OK) != library, f"{script}: what is called can be executed, the rest cannot"
    assert call("shellcheck", *SCRIPTS).stdout == ""


@pytest.mark.parametrize(("drivers", "asked"), [((), "False"), (("",), "True")])
def test_torch_is_asked_for_gpus_only_where_there_is_a_driver(drivers, asked):
    """It takes seconds to import, before each training on a laptop."""
    code = (
        f"import sys; from dcgan_dist.commands import launch; launch.GPU_FILES = {drivers}; count = launch.gpus_here()"
    )
    done = call(sys.executable, "-c", f"{code}; print(count, 'torch' in sys.modules)", CUDA_VISIBLE_DEVICES="")
    assert done.stdout == f"0 {asked}\n", done.stderr
