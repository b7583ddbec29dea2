"""Variables of a launcher that are missing, nonsense or at odds: one line by name, before torch reads them."""

import re
from contextlib import nullcontext
from itertools import combinations

import pytest

from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.parallel.variables import SIZES, check_gpus, problem, rank
from dcgan_dist.train import main

PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ALONE = PLACE | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
SECOND = PLACE | {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
WRONG = [  # environment, how the line begins
    ({"WORLD_SIZE": "0", "RANK": "0", **PLACE}, "WORLD_SIZE=0: must be at least 1"),
    ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: must be an integer"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE=: must be an integer"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be an integer"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but RANK is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2, but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}, "WORLD_SIZE=2, but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}, "WORLD_SIZE=2, but MASTER_PORT is not set"),
    ({"RANK": "x"}, "RANK=x: must be an integer"),
    ({"RANK": "1.0", "WORLD_SIZE": "2"}, "RANK=1.0: must be an integer"),
    ({"RANK": "1"}, "RANK=1, but WORLD_SIZE is not set, or 1"),
    (SECOND | {"RANK": "4"}, "RANK=4: must be less than WORLD_SIZE=4"),
    ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, but WORLD_SIZE is not set"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: must be an integer"),
    (SECOND | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be less than the 2 ranks of this machine"),
    (SECOND | {"LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5: must be from 1 to WORLD_SIZE=4"),
    (SECOND | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: must be from 1 to WORLD_SIZE=4"),
    (SECOND | {"MASTER_PORT": "abc"}, "MASTER_PORT=abc: must be an integer"),
    (SECOND | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be from 1 to 65535"),
    (SECOND | {"MASTER_PORT": "0"}, "MASTER_PORT=0: must be from 1 to 65535"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2, but WORLD_SIZE is not set, or 1"),
    ({"PMI_SIZE": "x"}, "PMI_SIZE=x: must be an integer"),
]
NAMES = {name for env, _ in WRONG for name in env}
RIGHT = [
    {},
    SECOND,
    {"WORLD_SIZE": "1"},
    {"WORLD_SIZE": "1", "RANK": "0", "MASTER_PORT": "x"},
    SECOND | {"PMI_SIZE": "2"},
]


@pytest.mark.parametrize(("env", "line"), WRONG)
def test_a_wrong_variable_is_named(env, line):
    assert problem(env, on_cpu=True) == line


@pytest.mark.parametrize("env", RIGHT)
def test_what_launchers_set_is_right(env):
    assert problem(env, on_cpu=True) is None


@pytest.mark.parametrize("names", [names for n in range(7) for names in combinations(ALONE, n)], ids="+".join)
def test_what_is_left_of_one_process_in_a_shell_is_one_process_or_one_line(names):
    """RANK, WORLD_SIZE and so on of torchrun --nproc-per-node 1: all, or any that torch does not read alone."""
    found = problem({name: ALONE[name] for name in names}, on_cpu=True)
    complete = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(names)
    if "LOCAL_RANK" not in names or complete:
        assert found is None
    else:  # Accelerate would wait for the others
        assert re.fullmatch(r"(WORLD_SIZE=1|LOCAL_RANK=0), but [A-Z_]+ is not set", str(found))


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_mpi_count_on_cpus_alone(name):
    assert problem({name: "2"}, on_cpu=True) == f"{name}=2, but WORLD_SIZE is not set, or 1"
    assert problem({name: "2"}, on_cpu=False) is None


@pytest.mark.parametrize(
    "env", [{"WORLD_SIZE": "0"}, {"RANK": "x"}, {"LOCAL_RANK": "7", "RANK": "3"}, {"WORLD_SIZE": "2", "RANK": "1"}]
)
def test_the_trainer_ends_by_one_line(env, monkeypatch, capsys, tmp_path):
    """On every rank: nobody knows which of them is the one that speaks."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    where = f"rank {rank()}: " if rank() else ""
    assert error.startswith(
        f"{where}error: {problem(env, on_cpu=True)} (environment); start the ranks with dcgan-dist launch, "
    )
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("env", "gpus", "line"),
    [
        ({"LOCAL_RANK": "2"}, 2, "3 ranks were launched on this machine, but torch finds 2 GPUs here"),
        (
            {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            1,
            "2 ranks were launched on this machine, but torch finds 1 GPU",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 2, "WORLD_SIZE is set, but LOCAL_RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, 0, ""),
        ({"LOCAL_WORLD_SIZE": "4"}, 1, ""),  # left in a shell
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, ""),
        ({"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 0, ""),
    ],
)
def test_each_rank_needs_a_gpu_of_its_own_where_there_are_any(env, gpus, line, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{line}") if line else nullcontext() as caught:
        check_gpus(gpus)
    if caught is not None:
        # every rank says it: of a UsageError the first rank of a node alone would speak, and here others may find it
        assert (caught.value.exit_code, isinstance(caught.value, UsageError)) == (2, False)
