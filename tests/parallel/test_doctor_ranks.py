"""The doctor's ranks: that they talk, that several train what one trains, and every way in which they may not."""

import contextlib
import io
import json
import os
import shlex
import socket
import sys
import threading
from dataclasses import replace

import pytest
from support.clock import Clock
from support.doctor import take_time
from support.launching import ROOT, call
from support.processes import children
from support.ranks import run_ranks
from support.waiting import LIMIT

from dcgan_dist import __main__ as front
from dcgan_dist import cli
from dcgan_dist.commands.doctor import command, ranks
from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.ranks import EQUAL, deviate, examine_local_ranks, local_world, small_run
from dcgan_dist.config import Config
from dcgan_dist.data.order import Split
from dcgan_dist.parallel.world import World, launch

pytestmark = pytest.mark.dist

# what may come in the way of equal weights, as in test_world_equality.py
TRAININGS = {
    "default": "",
    "hinge, spectral norm, 96": "--loss.name hinge --model.spectral_norm --model.image_size 96",
    "wasserstein": "--loss.name wasserstein --loss.gp_weight 10 --model.d_norm layer --augment color translation",
    "R1, accumulate": "--loss.r1_gamma 10 --model.d_norm none --accumulate 8 --no_channels_last",
    "schedule": "--optimizer.d_every 2 --optimizer.g_clip 0.05 --data.hflip --model.output sigmoid --model.channels 1",
    "local statistics": "--sync_batchnorm none",
}


# ---- started here, as on a machine without a launcher


@pytest.fixture(scope="module")
def printed_and_found(tmp_path_factory):
    out, printed = tmp_path_factory.mktemp("doctor") / "found.json", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        take_time(patch)
        assert front.main(["doctor", "--only", "ranks,equality", "--json", str(out)]) == 0
    return printed.getvalue(), {line["check"]: line for line in json.loads(out.read_text())["checks"]}


def test_two_ranks_are_started_and_train_what_one_trains(printed_and_found):
    printed, found = printed_and_found
    assert [line["mark"] for line in found.values()] == ["ok", "ok"]
    assert "2 ranks on the CPU (gloo): " in found["ranks"]["found"]
    assert "the all-reduce of the gradients (25.4 MB) takes " in found["ranks"]["found"]
    assert (
        "2 ranks on the CPU (gloo): after 3 iterations in float64, the weights differ by " in found["equality"]["found"]
    )
    assert printed.endswith("ready for this run: 2 ok, 0 warn, 0 FAIL, in " + printed.rpartition("in ")[2])


PATCHED = """
from dcgan_dist import __main__ as front
from dcgan_dist.parallel.shutdown import leave
from dcgan_dist.parallel.world import World
World.wrap = lambda self, network: network
leave(front.main())
"""


def start(monkeypatch, program, seconds=float(LIMIT)):
    """What the command says when its ranks are this program instead."""
    monkeypatch.setattr(ranks, "PROGRAM", (sys.executable, "-c", program, "doctor"))
    monkeypatch.setattr(ranks, "SECONDS", seconds)
    return command._alone(Context(Config()), ["ranks", "equality"])


def test_gradients_that_are_not_averaged_fail(monkeypatch):
    communication, equality = start(monkeypatch, PATCHED)
    assert communication.mark != "FAIL", communication
    assert equality.mark == "FAIL"
    assert equality.found.startswith("several ranks do not compute what one computes (worst: ")
    assert "do not train on several ranks" in equality.advice


def test_a_rank_that_never_answers_is_ended(monkeypatch):
    (line,) = start(monkeypatch, "import signal; signal.pause()", 0.5)
    assert (line.mark, line.found) == ("FAIL", "the 2 ranks did not end within 0.5 s")
    assert "GLOO_SOCKET_IFNAME" in line.advice
    assert children("signal.pause") == []


def test_a_rank_that_dies_gives_the_reason(monkeypatch):
    program = "import os, signal\nsignal.pause() if os.environ['RANK'] == '0' else exit('no such network')"
    (line,) = start(monkeypatch, program)
    assert (line.mark, line.check, line.found) == ("FAIL", "ranks", "rank 1 of 2 failed: no such network")


SEEN = """
import json, os, sys
found = {"mark": "ok", "found": json.dumps(dict(os.environ)), "check": "ranks", "node": "", "seconds": 0}
with open(sys.argv[-1], "w") as file:
    json.dump({"checks": [found]}, file)
"""


def test_the_ranks_see_nothing_of_another_launcher(monkeypatch):
    foreign = {"SLURM_PROCID": "3", "MASTER_ADDR": "elsewhere", "ACCELERATE_USE_CPU": "1", "OMPI_COMM_WORLD_RANK": "1"}
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "PROGRAM", (sys.executable, "-c", SEEN))
    (line,) = examine_local_ranks(Config(), ["ranks"])
    seen = json.loads(line.found)
    assert seen["MASTER_ADDR"] == "127.0.0.1"
    assert not {"SLURM_PROCID", "ACCELERATE_USE_CPU", "OMPI_COMM_WORLD_RANK"} & seen.keys()
    assert (seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"], seen["CUDA_VISIBLE_DEVICES"]) == ("2", "2", "")


@pytest.mark.parametrize(
    "options", ["--batch_size 3", "--batch_size 3 --world_size 1", "--accumulate 8 --batch_size 8"]
)
def test_a_batch_that_the_started_ranks_do_not_divide(options, monkeypatch):
    """Their number is the doctor's choice."""
    monkeypatch.setattr(ranks, "PROGRAM", (sys.executable, "-c", PER_RANK))
    assert examine_local_ranks(cli.load(options.split()), []) == []


PER_RANK = """
import json, sys
from dcgan_dist import cli
cli.load(sys.argv[1:3], quiet=True).per_rank(2)
with open(sys.argv[-1], "w") as file:
    json.dump({"checks": []}, file)
"""


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"),
    [(0, None, (2, False)), (1, None, (2, False)), (4, None, (4, True)), (4, 2, (2, True)), (2, 8, (2, True))],
)
def test_one_rank_on_each_gpu(gpus, asked, expected, monkeypatch):
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: gpus)
    assert local_world(replace(Config(), batch_size=128, world_size=asked)) == expected


# ---- launched


def deviations(trainings, size):
    world = launch(Config())
    assert world.size == size
    return {
        name: deviate(small_run(cli.load(shlex.split(options)), size), world)[0] for name, options in trainings.items()
    }


def test_every_training_is_the_same_on_several_ranks():
    for rank, found in enumerate(run_ranks(3, deviations, TRAININGS, 3)):
        assert found.keys() == TRAININGS.keys()
        assert {name: value for name, value in found.items() if not value < EQUAL / 10} == {}, rank


BREAKS = {
    "gradients": lambda: setattr(World, "wrap", lambda self, network: network),
    "statistics": lambda: setattr(ranks, "small_run", _local_statistics),
    "slices": lambda: setattr(Split, "slices", lambda self, position: [position] * self.micro_batches),
}


def _local_statistics(config, size):
    return replace(small_run(config, size), sync_batchnorm="none")


def broken(name):
    BREAKS[name]()
    world = launch(Config())
    return world.size, ranks.check_equality(Context(Config(), world=world))


@pytest.mark.parametrize("name", BREAKS)
def test_whatever_goes_wrong_between_ranks_is_found(name):
    (size, found), (_, same) = run_ranks(2, broken, name)
    assert (size, found) == (2, same)
    assert found.mark == "FAIL"
    assert float(found.found.partition("differ by ")[2].partition(" ")[0]) > 1e4 * EQUAL


def launched(options, nodes, printed=None):
    """Exit code and what was printed; every rank thinks it is the first of a node of its own if there are several."""
    rank = os.environ["RANK"]
    if nodes > 1:
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        socket.gethostname = lambda: f"node{rank}"
    printed = printed or io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = front.main(["doctor", *options])
    return code, printed.getvalue()


def unhurried(options, nodes):
    take_time(pytest.MonkeyPatch())
    return launched(options, nodes)


def test_launched_ranks_are_those_that_are_examined(tmp_path):
    options = ["--run_dir", str(tmp_path / "run"), "--only", "ranks,equality,precision,launcher"]
    (code, printed), (other_code, nothing) = run_ranks(2, unhurried, options, 1)
    assert (code, other_code, nothing) == (0, 0, "")
    assert [line.split()[1] for line in printed.splitlines() if line[:2] == "ok"] == [
        "precision", "launcher", "ranks", "equality",
    ]  # fmt: skip
    assert "2 ranks were launched" in printed
    assert printed.count("2 ranks on the CPU (gloo)") == 2


def test_every_node_is_examined_and_one_bad_node_fails_all(tmp_path):
    """On one of them something stands where the run's folder should be."""
    options = ["--run_dir", str(tmp_path / "run"), "--only", "run_dir,ranks"]
    (code, printed), (other_code, _) = run_ranks(2, launched_with_one_bad_node, options)
    assert (code, other_code) == (1, 0)  # the launcher ends the main rank at the failure of another
    lines = [line for line in printed.splitlines() if "run_dir " in line]
    assert [line.split()[:3] for line in lines] == [["ok", "run_dir", "node0:"], ["FAIL", "run_dir", "node1:"]]
    assert "not ready for this run (run_dir): 2 ok, 0 warn, 1 FAIL" in printed


def launched_with_one_bad_node(options):
    if os.environ["RANK"] == "1":
        options = [*options, "--run_dir", __file__]
    return unhurried(options, 2)


def lost():
    command.GROUP_TIMEOUT = 1
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        return front.main(["doctor", "--only", "ranks"]), said.getvalue()


def test_launched_ranks_that_do_not_meet_report_it_in_one_line():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])
        for rank, (code, said) in enumerate(run_ranks(2, lost, variables={"MASTER_PORT": port})):
            assert code == 1
            where = f"rank {rank}: " if rank else ""
            assert said.startswith(f"{where}error: the 2 launched ranks do not find each other at 127.0.0.1:{port} (")
            assert said.count("\n") == 1


def silent(options, pipe):
    """Rank 1 never takes part; rank 0 would end its process, whose thread still waits, with an exit code."""
    if os.environ["RANK"] == "1":
        return launch(Config()).size, pipe.read_text(), ""
    take_time(pytest.MonkeyPatch())
    ranks.time = Clock(lambda: True)  # pyright: ignore[reportAttributeAccessIssue]
    codes = []
    command.os._exit = codes.append  # pyright: ignore[reportAttributeAccessIssue]
    command.World.close = lambda self: None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        front.main(["doctor", *options])
    pipe.write_text("over")
    return 2, codes, printed.getvalue()


def test_a_launched_rank_that_never_answers(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (size, codes, printed), other = run_ranks(2, silent, ["--only", "ranks,devices"], tmp_path / "pipe")
    assert (size, codes, other) == (2, [1], (2, "over", ""))
    assert "ok    devices " in printed
    assert "FAIL  ranks " in printed
    assert f"rank 1 did not report within {2 * LIMIT} s" in " ".join(printed.split())
    assert "no answer" not in printed  # what it would be asked for is not begun
    assert "not ready for this run (ranks)" in printed


def cannot_talk(options, kind):
    """Rank 1's sums over all ranks fail, or never end, as where NCCL finds no way to the others."""
    take_time(pytest.MonkeyPatch())
    if kind == "hangs" or os.environ["RANK"] == "0":
        command.SECONDS = 3.0

    def sum_(world, tensor):
        if world.rank == 1 and kind == "fails":
            raise RuntimeError("NCCL error: unhandled system error\nsocketStartConnect: no route to host")
        threading.Event().wait()

    World.sum_ = sum_  # pyright: ignore[reportAttributeAccessIssue]
    codes = []

    def leave(code):
        codes.append(code)
        raise SystemExit

    command.os._exit = leave  # pyright: ignore[reportAttributeAccessIssue]
    printed = io.StringIO()
    with contextlib.suppress(SystemExit):
        launched(options, 2, printed)
    return codes, printed.getvalue(), os.environ["WORLD_SIZE"]


@pytest.mark.parametrize("kind", ["fails", "hangs"])
def test_ranks_that_cannot_talk_still_print_what_they_found(kind, tmp_path):
    options = ["--run_dir", str(tmp_path / "run"), "--only", "run_dir,ranks,equality"]
    (codes, printed, size), (other_codes, nothing, _) = run_ranks(2, cannot_talk, options, kind)
    assert (codes, other_codes, nothing, size) == ([1], [0], "", "2")
    lines = printed.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("ok ")] == [
        ["ok", "run_dir", "node0:"], ["ok", "run_dir", "node1:"]
    ]  # fmt: skip
    text = " ".join(printed.split())
    where = "rank 0 on node0: " if kind == "fails" else ""  # both say the same
    assert f"FAIL ranks {where}no answer within 3 s" in text
    assert "NCCL_SOCKET_IFNAME" in text
    theirs = "FAIL ranks rank 1 on node1: NCCL error: unhandled system error socketStartConnect: no route to host"
    assert (theirs in text) == (kind == "fails")
    assert "not ready for this run (ranks): 2 ok, 0 warn, " in text


NO_CHECKSUMS = """
import os, sys
from dcgan_dist import __main__ as front
from dcgan_dist.parallel.world import World

def sum_(world, tensor):
    raise RuntimeError("NCCL error: unhandled system error")

World.sum_ = sum_
raise SystemExit(front.main(["doctor", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_a_launcher_ends_no_rank_that_still_has_output(attempt, tmp_path):
    """It ends all as soon as one of them leaves with an exit code."""
    (tmp_path / "doctor.py").write_text(NO_CHECKSUMS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    given = ["--run_dir", tmp_path / "run", "--only", "devices,ranks", "--json", tmp_path / "found.json"]
    done = call(*launcher, tmp_path / "doctor.py", *given, OMP_NUM_THREADS=1, GLOO_SOCKET_IFNAME="lo", PYTHONPATH=ROOT)
    assert done.returncode == 1
    assert "FAIL  ranks " in done.stdout
    assert "NCCL error: unhandled system error" in done.stdout
    assert "not ready for this run (ranks)" in done.stdout
    assert {line["check"] for line in json.loads((tmp_path / "found.json").read_text())["checks"]} == {
        "devices",
        "ranks",
    }
