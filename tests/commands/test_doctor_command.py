"""`dcgan-dist doctor` on this machine: fine as it is, and not fine in every way that can be had here."""

import fcntl
import json
import os
import re
import shlex
import socket
import threading

import pytest
import torch
from support.disk import no_file_larger_than
from support.doctor import take_time
from support.fake_wandb import FakeWandb
from support.http_server import HttpServer
from support.shards import write_ours

from dcgan_dist import __main__ as front
from dcgan_dist import cli, train
from dcgan_dist.commands.doctor import command, machine, run_folder, shards
from dcgan_dist.commands.doctor.command import CHECKS, examine
from dcgan_dist.commands.doctor.context import Context
from dcgan_dist.commands.doctor.finding import ok
from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.data.system import cgroups
from dcgan_dist.gan.network_sizes import measure_networks
from dcgan_dist.gan.networks import layer_table
from dcgan_dist.gan.state import create_state
from dcgan_dist.run import checkpoint
from dcgan_dist.run import memory as run_memory
from dcgan_dist.run.lease import Lease

LOCAL = [name for name in CHECKS if name not in ("ranks", "equality")]
TINY = shlex.split("--model.image_size 32 --model.nz 8 --model.ngf 4 --model.ndf 4 --trackers=wandb")
KEY = "0" * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    for number in range(3):
        write_ours(tmp_path / f"shards/{number}.tar", 8, first=8 * number)
    return tmp_path


@pytest.fixture
def doctor(folder, capsys, monkeypatch):
    """Runs the command on a good configuration with further options: exit code, findings, what was printed."""
    take_time(monkeypatch)

    def run(*options, only=None):
        out = folder / "found.json"
        given = ["--run_dir", folder / "run", "--data.shards", f"{folder}/shards/*.tar", *TINY]
        given += ["--json", out, "--overwrite"]
        given += ["--only", only] if only else ["--skip", "ranks,equality"]
        code = front.main(["doctor", *map(str, [*given, *options])])
        found = {line["check"]: line for line in json.loads(out.read_text())["checks"]}
        return code, found, capsys.readouterr().out

    return run


def one(doctor, name, *options):
    """Mark, finding and advice of one check."""
    code, found, printed = doctor(*options, only=name)
    assert list(found) == [name]
    line = found[name]
    assert code == (line["mark"] == "FAIL")
    assert printed.startswith(f"{line['mark']:<4}  {name} ")
    assert ("-> " in printed) == (line["mark"] != "ok")
    return line["mark"], line["found"], line["advice"]


def test_this_machine_is_fine(doctor, folder):
    before = sorted(folder.rglob("*"))
    code, found, printed = doctor()
    assert list(found) == LOCAL
    assert {name: line["found"] for name, line in found.items() if line["mark"] == "FAIL"} == {}
    assert code == 0
    lines = printed.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("ok ", "warn "))] == LOCAL
    assert lines[-2].startswith("ready for this run: ")
    assert lines[-2].endswith(" s")
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "found.json"])  # no trace, and no run folder yet
    assert f"24 images in 3 shards, all opened; {3 * shards.SAMPLES} images checked" in found["shards"]["found"]


def test_what_is_written_for_programs_holds_no_command(doctor, folder):
    doctor(only="locks")
    written = json.loads((folder / "found.json").read_text())
    assert written["ok"] is True
    assert {"packages", "machine", "devices"} <= written["about"].keys()
    assert "command" not in written["about"]


def test_names_of_checks_are_names(capsys):
    assert front.main(["doctor", "--only", "disc"]) == 2
    assert capsys.readouterr().err.startswith("error: --only: there is no check 'disc'; there are devices, precision,")
    assert front.main(["doctor", "--skip", "disk,"]) == 2
    assert "--skip: there is no check ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model.image_size 33", "image_size"),
        ("--json nowhere/a.json", "--json nowhere/a.json: name a file in a folder that exists"),
        ("--world_size 3", "--batch_size 128 does not divide evenly over 3 ranks"),
        ("--only", "--only names no checks; leave the option out for all"),
        ("--nonsense 1", "there is no option --nonsense"),
    ],
)
def test_wrong_usage(options, words, capsys):
    assert front.main(["doctor", *options.split()]) == 2
    assert words in capsys.readouterr().err


# ---- what a check does, whatever happens in it


def test_a_check_that_never_ends_fails_in_its_time(monkeypatch):
    never = threading.Event()

    def wait(context):
        never.wait()
        return ok("")

    monkeypatch.setitem(command.CHECKS, "disk", wait)
    monkeypatch.setattr(command, "SECONDS", 0.05)
    line = examine("disk", Context(Config()))
    never.set()
    assert (line.mark, line.found, line.hung) == ("FAIL", "no answer within 0.05 s", True)
    assert "--skip disk" in line.advice


def test_a_check_that_breaks_is_a_line_and_no_traceback(doctor, monkeypatch, capsys):
    def broken(context):
        raise ZeroDivisionError("some\nreason")

    monkeypatch.setitem(command.CHECKS, "disk", broken)
    mark, found, _ = one(doctor, "disk")
    assert (mark, found) == ("FAIL", "the check itself failed: ZeroDivisionError: some reason")
    assert capsys.readouterr().err == ""


# ---- the run's folder


def test_a_folder_that_cannot_be_written(doctor):
    code, found, printed = doctor("--run_dir", "/proc/runs/new", only="disk,locks")
    assert code == 1
    assert [line["mark"] for line in found.values()] == ["FAIL", "warn"]  # said once
    assert all("cannot write to /proc (" in line["found"] for line in found.values())
    assert "--run_dir" in found["disk"]["advice"]
    assert printed.count("-> see the line disk") == 1


@pytest.mark.parametrize("limit", [8_000, 100_000_000])
def test_a_full_disk(doctor, limit):
    """The kernel refuses what is larger; the log of the doctor itself is smaller, and so is what is written to try."""
    with no_file_larger_than(limit):
        mark, found, advice = one(doctor, "disk", "--model.ngf", "512")
    assert (mark, found.partition("/")[0]) == ("FAIL", "cannot write to ")
    assert "(File too large)" in found
    assert advice.endswith("ulimit -f, or set --run_dir to another folder")


def test_a_small_disk(doctor, monkeypatch):
    needed = 4 * measure_networks(cli.load(TINY), torch.float32).checkpoint
    monkeypatch.setattr(run_folder, "free_bytes", lambda folder: needed - 1)
    assert one(doctor, "disk", "--images", "1")[0] == "FAIL"
    monkeypatch.setattr(run_folder, "free_bytes", lambda folder: 10 * needed)
    assert one(doctor, "disk", "--images", "1")[0] == "ok"


def test_a_folder_of_other_files_is_no_run(doctor, folder):
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").touch()
    mark, found, _ = one(doctor, "run_dir")
    assert mark == "FAIL"
    assert "holds other files" in found


@pytest.fixture
def trained(folder, as_before, capsys):
    """The folder of a run with checkpoints at 8 and 16 images."""
    given = ["--run_dir", folder / "run", "--data.shards", f"{folder}/shards/*.tar", *TINY, "--batch_size", 8]
    given += ["--images", 16, "--checkpoint.every", 8, "--wandb.mode", "disabled"]
    assert train.main([*map(str, given)]) == 0
    capsys.readouterr()
    return folder / "run"


def test_checkpoints_are_looked_at(doctor, trained):
    again = ("--batch_size", "8")
    assert one(doctor, "run_dir", *again)[:2] == ("ok", f"{trained} resumes from checkpoint 000000016 (auto)")
    damaged = trained / "checkpoints/000000016/netg.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    mark, found, _ = one(doctor, "run_dir", *again)
    assert (mark, found.partition(";")[0]) == ("warn", "1 newer checkpoint is damaged")
    assert "resumes from checkpoint 000000008" in found


@pytest.mark.parametrize(
    "options",
    [
        "--resume never",
        "--resume nowhere",
        "--resume {run}/checkpoints/000000008",
        "--optimizer.g_lr 1",
        "--precision bf16",
        "--data.shards {shards}/0.tar",
    ],
)
def test_what_training_would_refuse_fails_in_the_same_words(options, doctor, trained, folder, capsys):
    given = ["--batch_size", "8", *options.format(run=trained, shards=folder / "shards").split()]
    mark, found, advice = one(doctor, "run_dir", *given)
    assert mark == "FAIL"
    assert "training would end with this error" in advice
    first = ["--run_dir", trained, "--data.shards", f"{folder}/shards/*.tar", *TINY, "--wandb.mode", "disabled"]
    assert train.main([*map(str, first), *given]) == 2
    assert capsys.readouterr().err == f"error: {found}\n"


def test_shards_that_are_left_out_by_mistake_are_missed(trained, capsys):
    """The embedded set would be trained on; it is not drawn to find that out."""
    given = ["--run_dir", trained, *TINY, "--wandb.mode", "disabled", "--batch_size", 8]
    given += ["--data.faces", 64, "--resume.allow_changes", "data.faces"]
    assert front.main(["doctor", "--only", "run_dir", *map(str, given)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert train.main([*map(str, given)]) == 2
    refused = capsys.readouterr().err.removeprefix("error: ").strip()
    assert "was trained on another data set (24 images, now 64, or" in refused
    assert f"FAIL run_dir {refused} -> " in said


def test_a_disk_that_does_not_answer_is_what_training_would_say(doctor, trained, monkeypatch):
    def stale(*_):
        raise OSError(116, "Stale file handle", "the folder")

    monkeypatch.setattr(checkpoint, "all_checkpoints", stale)
    mark, found, _ = one(doctor, "run_dir", "--batch_size", "8")
    assert (mark, found) == ("FAIL", "the folder: cannot be read (Stale file handle)")
    monkeypatch.setattr(Lease, "_read", stale)
    mark, found, _ = one(doctor, "run_dir", "--batch_size", "8")
    assert (mark, found) == ("FAIL", f"--run_dir {trained}: cannot be read (Stale file handle)")


def test_checkpoints_that_will_be_removed_make_space_but_not_the_best(trained):
    checkpoints = trained / "checkpoints"

    def needed():
        config = cli.load([*TINY, "--run_dir", str(trained), "--checkpoint.keep", "99"])
        return run_folder.check_disk(Context(config)).found.partition("; ")[0].partition(", ")[2]

    without_best = needed()
    (checkpoints / "best").write_text("000000008")
    with_best = needed()
    (checkpoints / "000000008").rename(checkpoints / "000000008-left")
    (checkpoints / "best").write_text("000000008-left")
    assert without_best != with_best == needed()


def test_a_run_that_another_job_has(doctor, trained, monkeypatch):
    """On another host, whose heartbeat is seen."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "node7")
        lease = Lease(trained, beat=0.05)
        lease.take()
    mark, found, _ = one(doctor, "run_dir", "--batch_size", "8")
    assert mark == "FAIL"
    assert f"{trained}: another job is training here (host node7, pid {os.getpid()}, since " in found
    assert f"touch {trained / 'STOP'}" in found
    lease.release()
    assert one(doctor, "run_dir", "--batch_size", "8")[0] == "ok"


def test_a_stop_that_waits_for_the_next_attempt(doctor, trained):
    (trained / "STOP").touch()
    mark, found, advice = one(doctor, "run_dir", "--batch_size", "8")
    assert (mark, found.partition(";")[0]) == ("warn", "the file STOP exists, and will stop the run at once")
    assert advice == f"remove {trained / 'STOP'}, unless the run is meant to stop"


def test_what_a_killed_doctor_left_is_no_foreign_file(doctor, folder):
    (folder / "run" / ".doctor-abc").mkdir(parents=True)
    assert one(doctor, "run_dir")[:2] == ("ok", f"{folder / 'run'} holds no checkpoint yet")


def refuse(file, how):
    raise OSError(37, "No locks available")


def test_a_file_system_without_locks(doctor, monkeypatch):
    assert one(doctor, "locks")[0] == "ok"
    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert one(doctor, "locks")[0] == "warn"
    assert one(doctor, "locks")[:2] == ("warn", "files cannot be locked (No locks available)")


def test_a_cache_without_locks(folder, monkeypatch):
    """The embedded set's; nothing is drawn into it, and nothing is left there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    (folder / "home").mkdir()
    assert shards.check_cache(Context(Config())).mark == "ok"
    monkeypatch.setattr(fcntl, "flock", refuse)
    finding = shards.check_cache(Context(Config()))
    assert finding.mark == "FAIL"
    assert finding.found.startswith("files cannot be locked (No locks available); ")
    assert list((folder / "home").iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"spectral_norm": True}, {"image_size": 96, "d_norm": "layer", "channels": 1}])
def test_sizes_are_those_of_real_networks(changes):
    """A checkpoint's after one step of the optimisers, and the outputs of real layers."""
    config = Config(model=ModelConfig(**{"image_size": 32, "nz": 8, "ngf": 4, "ndf": 4} | changes))
    state = create_state(config, torch.device("cpu"), torch.float32, False)
    for network, optimizer in ((state.netg, state.opt_g), (state.netd, state.opt_d)):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    tensors = state.tensors()
    files = [sum(tensor.nbytes for tensor in each.values()) for each in tensors.values()]
    sizes = measure_networks(config, torch.float32)
    assert (sizes.checkpoint, sizes.largest_file) == (sum(files), max(files))
    rows = layer_table(state.netg, torch.zeros(1, 8, 1, 1))
    model = config.model
    image = torch.zeros(1, model.channels, model.image_size, model.image_size)
    numbers = [eval_shape(row) for row in rows] + 2 * [eval_shape(row) for row in layer_table(state.netd, image)]
    assert sizes.outputs == 4 * sum(numbers)


def eval_shape(row):
    return int(torch.tensor([int(part) for part in row[1].split(" x ")]).prod())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_bf16_that_a_gpu_emulates(precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    finding = machine.check_precision(Context(Config(precision=precision)))
    assert (finding.mark, "emulated" in finding.found) == (("warn", True) if precision == "bf16" else ("ok", False))


@pytest.fixture
def unused_gpu(folder, monkeypatch):
    """A driver with a GPU that this torch cannot use."""
    (folder / "nvidia0").touch()
    (folder / "nvidia-uvm").touch()
    monkeypatch.setattr(machine, "Path", lambda _: folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def refuse_cuda():
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")


def test_torch_says_why_it_cannot_use_a_gpu(unused_gpu, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", refuse_cuda)
    why = "The NVIDIA driver on your system is too old (found version 11040). Please update it."
    assert machine.why_no_gpu() == why
    finding = machine.check_devices(Context(Config()))
    assert (finding.mark, why in finding.found) == ("FAIL", True)
    (folder / "nvidia0").unlink()
    assert machine.check_devices(Context(Config())).mark == "ok"  # there is none


@pytest.mark.parametrize(
    ("named", "hidden"), [("0", False), ("0,1", False), ("", True), ("-1", True), ("NoDevFiles", True)]
)
def test_gpus_that_are_hidden_on_purpose(unused_gpu, named, hidden, monkeypatch):
    """By SLURM, too, for a job without GPUs: NoDevFiles."""
    monkeypatch.setattr(torch.cuda, "init", refuse_cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert (machine.why_no_gpu() == "") == hidden


def test_a_gpu_that_cannot_compute(monkeypatch):
    """Torch sees it, and has no kernels for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")

    def fails(*given, **named):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ..")

    monkeypatch.setattr(torch, "ones", fails)
    finding = machine.check_devices(Context(Config()))
    assert finding.mark == "FAIL"
    assert finding.found.startswith("GPU 0 (H100) cannot compute: CUDA error: no kernel image is available for")
    assert "Compile with" not in finding.found


# ---- the data


def test_one_bit_in_one_shard(doctor, folder):
    shard = folder / "shards/1.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    mark, found, advice = one(doctor, "shards")
    assert mark == "FAIL"
    assert f"{shard}: 00008" in found
    assert "--repair" in advice


def test_a_cut_shard(doctor, folder):
    shard = folder / "shards/2.tar"
    shard.write_bytes(shard.read_bytes()[:5_000])
    code, found, _ = doctor(only="run_dir,shards,cache,memory")
    assert code == 1
    assert str(shard) in found["shards"]["found"]
    assert [line["check"] for line in found.values() if line["mark"] == "FAIL"] == ["shards"]  # it is to blame
    assert found["cache"]["advice"] == "see the line shards"


def test_pipes_are_not_opened(doctor, folder):
    made = folder / "made"
    options = ["--data.shards", f"pipe:touch {made}", "--data.reader", "stream", "--data.allow_pipe"]
    assert one(doctor, "shards", *options)[0] == "warn"
    assert not made.exists()


def test_a_users_pipeline_is_imported_and_not_run(doctor, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "mine_for_doctor.py").write_text("def make(shards, **_): raise SystemExit\n")
    for name, mark in ("make", "warn"), ("mak", "FAIL"):
        options = ["--data.reader", "stream", "--data.pipeline", f"mine_for_doctor:{name}"]
        found = one(doctor, "shards", *options)
        assert (found[0], f"--data.pipeline mine_for_doctor:{name}" in found[1]) == (mark, True)


def test_remote_shards_and_their_cache(doctor, folder):
    content = (folder / "shards/0.tar").read_bytes()
    with HttpServer({"0.tar": content}) as server:
        options = ["--data.shards", server.url("0.tar"), "--data.cache", str(folder / "cache")]
        code, found, _ = doctor(*options, only="shards,cache")
        assert (code, found["shards"]["mark"], found["cache"]["mark"]) == (0, "ok", "ok")
        assert one(doctor, "cache", *options, "--data.cache_bytes", "1000")[0] == "warn"
        assert one(doctor, "cache", *options, "--data.cache_bytes", "0")[0] == "warn"
        mark, found, _ = one(doctor, "cache", *options, "--data.cache", "/proc/cache")
        assert (mark, found.partition("(")[0]) == ("FAIL", "cannot write to /proc ")
        mark, found, _ = one(doctor, "shards", "--data.shards", server.url("1.tar"))
        assert mark == "FAIL"
        assert "1.tar" in found


def test_the_embedded_set_is_not_drawn(doctor, folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    case = Context(Config())
    assert shards.check_shards(case).mark == shards.check_cache(case).mark == "ok"
    assert not (folder / "home").exists()


def test_memory_of_this_process_and_of_its_job(doctor, folder, monkeypatch):
    assert 1e6 < run_memory.available_memory() < 1e14
    monkeypatch.setattr(machine, "available_memory", lambda: 1e6)
    assert one(doctor, "memory")[0] == "FAIL"


def test_memory_that_ranks_and_the_copy_of_a_save_need(doctor, folder):
    def needed(*options: str) -> float:
        found = one(doctor, "memory", "--precision", "fp32", *options)[1]
        number, unit = re.search(r"use about ([0-9.]+) (.B)", found).groups()  # pyright: ignore
        return float(number) * {"MB": 1e6, "GB": 1e9}[unit]

    big = ("--model.ngf", "256", "--model.ndf", "256", "--model.image_size", "64", "--batch_size", "8")
    copy = measure_networks(cli.load([*TINY, *big]), torch.float32).checkpoint
    assert copy > 5e8
    assert needed(*big) - needed(*big, "--checkpoint.blocking") == pytest.approx(copy, abs=2e8)
    one_rank, four = needed("--world_size", "1"), needed("--world_size", "4")  # without a launcher: all of them here
    assert four - one_rank == pytest.approx(3 * run_memory.PROCESS["cpu"], rel=0.1)


def test_of_the_gpus_only_those_count_that_ranks_will_have(monkeypatch):
    free = [40e9, 39e9, 1e9, 0.5e9]  # two are somebody else's
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 80e9))

    def gpu(world_size):
        case = Context(Config(world_size=world_size, precision="fp32"))
        return re.search(r"GPU: ([0-9.]+ .B) free", machine.check_memory(case).found)[1]  # pyright: ignore

    assert [gpu(1), gpu(2), gpu(4), gpu(None)] == ["40.0 GB", "39.0 GB", "500.0 MB", "500.0 MB"]


def test_a_job_s_limit_of_memory(folder, monkeypatch):
    """Of the group above, which is the tighter one."""
    groups = folder / "cgroup"
    (groups / "job/step").mkdir(parents=True)
    for name, limit, used in (("job", "3000000", "1000000"), ("job/step", "max", "5")):
        (groups / name / "memory.max").write_text(limit)
        (groups / name / "memory.current").write_text(used)
    (folder / "own").write_text("0::/job/step\n")
    monkeypatch.setattr(cgroups, "MOUNTS", groups)
    monkeypatch.setattr(cgroups, "OWN", folder / "own")
    assert run_memory.available_memory() == 2e6
    # files that were read lie in memory while nobody else wants it, and count as used
    (groups / "job/memory.stat").write_text("anon 100000\ninactive_file 900000\nactive_file 5\n")
    assert run_memory.available_memory() == 2.9e6


def test_a_job_s_limit_of_memory_by_older_groups(folder, monkeypatch):
    group = folder / "cgroup/memory/job"
    group.mkdir(parents=True)
    for name, text in (
        ("limit_in_bytes", "3000000"), ("usage_in_bytes", "1000000"), ("stat", "cache 5\ntotal_inactive_file 700000\n")
    ):  # fmt: skip
        (group / f"memory.{name}").write_text(text)
    (folder / "own").write_text("4:cpu:/else\n3:memory:/job\n")
    monkeypatch.setattr(cgroups, "MOUNTS", folder / "cgroup")
    monkeypatch.setattr(cgroups, "OWN", folder / "own")
    assert run_memory.available_memory() == 2.7e6


# ---- outside


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with FakeWandb() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield server


def test_wandb_answers_and_takes_the_key(server, doctor):
    mark, found, _ = one(doctor, "wandb")
    assert (mark, found) == ("ok", f"online: {server.url.removeprefix('http://')} accepts the key")
    assert server.operations == ["Viewer"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [("401", "refuses the key"), ("500", "answers with error 500"), ("down", "cannot be reached")],
)
def test_wandb_that_is_not_well(fault, words, server, doctor, folder):
    server.fault = fault
    mark, found, _ = one(doctor, "wandb")
    assert mark == "warn"
    assert words in found
    code, _, printed = doctor("--wandb.mode", "online", only="wandb")
    assert code == 1
    assert KEY not in printed + (folder / "found.json").read_text()


def test_wandb_behind_a_closed_port(doctor, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        mark, found, advice = one(doctor, "wandb", "--wandb.mode", "online")
    assert mark == "FAIL"
    assert "cannot be reached (" in found
    assert "--wandb.mode offline" in advice


def test_wandb_that_accepts_and_never_answers(doctor, monkeypatch):
    monkeypatch.setattr("dcgan_dist.commands.doctor.machine.WANDB_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        mark, found, _ = one(doctor, "wandb", "--wandb.mode", "online")
    assert mark == "FAIL"
    assert "does not answer within 0.2 s" in found


def test_wandb_that_is_off_is_not_asked(doctor):
    assert one(doctor, "wandb", "--wandb.mode", "offline")[:2] == (
        "ok", "not used: W&B is offline (--wandb.mode offline, not WANDB_MODE=disabled)",
    )  # fmt: skip


def test_the_environment_of_a_launcher(doctor, monkeypatch):
    assert one(doctor, "launcher")[0] == "ok"
    monkeypatch.setenv("MASTER_ADDR", "no..name")
    mark, found, _ = one(doctor, "launcher")
    assert mark == "FAIL"
    assert "MASTER_ADDR no..name has no address here" in found
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("WORLD_SIZE", "2")
    mark, found, _ = one(doctor, "launcher")
    assert (mark, found.partition(" (")[0]) == ("FAIL", "WORLD_SIZE=2, but RANK is not set")
