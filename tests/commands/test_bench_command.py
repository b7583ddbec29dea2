"""`dcgan-dist bench loader`: what it measures, what it concludes, and how it refuses."""

import contextlib
import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from support.shards import picture, write_ours

from dcgan_dist.commands import bench
from dcgan_dist.commands.bench import reading as bench_reading
from dcgan_dist.commands.bench import webdataset as bench_webdataset
from dcgan_dist.commands.bench.floors import Floors
from dcgan_dist.commands.bench.reading import Rank, workers_of
from dcgan_dist.commands.bench.turns import Turn, cpu_seconds, interleave, until
from dcgan_dist.commands.bench.verdict import Measured, judge
from dcgan_dist.config import Config, DataConfig
from dcgan_dist.errors import UsageError, UserError

SHARD = 24  # images
TINY = shlex.split(
    "--model.image_size 32 --model.nz 8 --model.ngf 8 --model.ndf 8 --batch_size 8 --wandb.mode disabled"
)
QUICK = shlex.split("--seconds 0.05 --rounds 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of JPEG files."""
    folder = tmp_path_factory.mktemp("some shards")
    for number in range(3):
        write_ours(folder / f"{number}.tar", SHARD, "jpg", first=SHARD * number)
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    """What the command prints on a machine of two cores, and what it writes."""
    printed, out, threads = io.StringIO(), folder / "out.json", torch.get_num_threads()
    options = ["--data.shards", f"{folder}/*.tar", *TINY, *QUICK, "--samples", str(SHARD + 1), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bench_reading, "available_cores", lambda: 2)
        assert bench.main(["loader", *options]) == 0
    torch.set_num_threads(threads)
    return printed.getvalue(), out.read_text()


def test_every_way_of_loading_is_measured(measured):
    printed, written = measured
    ways = ["as in training", "--data.decode threads --data.workers 1"]
    ways += ["--data.decode threads --data.workers 2", "--data.decode processes --data.workers 2"]
    names = [f"loader, {way}; {epochs}" for way in ways for epochs in ("first epoch", "later epochs")]
    names += [f"webdataset {kind}, {workers} workers" for kind in ("as documented", "PIL, uint8") for workers in (0, 2)]
    names += ["floor: bare decode of the same bytes", "floor: copy of the same pixels", "training step alone"]
    rows = json.loads(written)["rows"]
    assert [row["name"] for row in rows] == names
    assert all(row["images_per_second"] > 0 and row["cpu_us_per_image"] >= 0 for row in rows)
    starts = {row["name"]: row["first_batch_seconds"] for row in rows}
    timed = {name for name in names if "first epoch" in name or "webdataset" in name}
    assert {name for name, seconds in starts.items() if seconds is not None} == timed
    for row in rows:
        assert f"{row['name']} " in printed


def test_as_many_shards_as_were_asked_for(measured):
    printed, written = measured
    assert f"the first 2 of 3 shards, {2 * SHARD} images" in printed
    about = json.loads(written)["measured_with"]
    assert (about["shards"], about["images"], about["encoded"], about["batch"]) == (2, 2 * SHARD, 1.0, 8)


def test_the_verdict_is_that_of_the_rows(measured):
    printed, written = measured
    results = json.loads(written)
    rates = {row["name"]: row["images_per_second"] for row in results["rows"]}
    loader, step = rates["loader, as in training; later epochs"], rates["training step alone"]
    assert results["verdict"]["factor"] == pytest.approx(max(loader, step) / min(loader, step))
    assert results["verdict"]["text"] in printed
    assert all(line in printed for line in results["verdict"]["advice"])


def test_results_say_where_they_come_from_but_name_no_machine_and_no_file(measured, folder):
    written = measured[1]
    about = json.loads(written)["about"]
    assert about["packages"]["torch"] == str(torch.__version__).partition("+")[0]
    assert {"python", "cpu_cores", "devices", "git_commit"} <= about.keys()
    assert not {"machine", "command"} & about.keys()
    assert folder.name not in written


# ---- the verdict

CASE = Measured(
    device="cuda",
    precision="fp32",
    loader=1000.0,
    first_epoch=900.0,
    workers={},
    step=1000.0,
    loader_cpu=40.0,
    step_cpu=60.0,
    pixels_cpu=2.5,
    encoded=1.0,
    ranks=1,
)


@pytest.mark.parametrize(
    ("loader", "step", "limit", "factor"),
    [(1000, 4000, "loader", 4), (4000, 1000, "step", 4), (1000, 1100, "even", 1.1), (1100, 1000, "even", 1.1)],
)
def test_the_slower_of_the_two_is_the_limit(loader, step, limit, factor):
    verdict = judge(replace(CASE, loader=loader, step=step, first_epoch=loader))
    assert (verdict.limit, verdict.factor) == (limit, pytest.approx(factor))
    assert f"the loader gives {loader:,} images/s, the training step takes {step:,}" in verdict.text


def advice(**changes):
    return "\n".join(judge(replace(CASE, **changes)).advice)


def test_a_slow_loader_is_told_what_was_measured_to_be_faster():
    slow = {"step": 9000.0, "workers": {"--data.workers 2": 900.0, "--data.workers 4": 3000.0}}
    assert "--data.workers 4: measured 3.0 times" in advice(**slow)
    assert "--data.workers" not in advice(step=9000.0, workers={"--data.workers 2": 1100.0})


def test_pixels_are_advised_only_where_images_are_encoded():
    assert "--store ppm: a copy of pixels costs 2.5 us of CPU an image, loading now costs 40.0" in advice(step=9000.0)
    assert "--store ppm" not in advice(step=9000.0, encoded=0.0)
    assert "--store ppm" not in advice(step=100.0)


def test_slow_files_are_told_also_where_the_loader_is_fast_enough_afterwards():
    assert "local disk" in advice(step=9000.0, first_epoch=100.0)
    assert "local disk" in advice(step=500.0, first_epoch=100.0)
    assert "local disk" not in advice(step=500.0, first_epoch=900.0)


def test_a_slow_step_is_told_what_its_device_offers():
    assert "--precision bf16" in advice(step=100.0)
    assert "--precision" not in advice(step=100.0, precision="bf16")
    on_cpu = advice(step=100.0, device="cpu")
    assert "loading takes 40.0%" in on_cpu
    assert "--store ppm" in on_cpu
    assert "--store ppm" not in advice(step=100.0, device="cpu", step_cpu=1e6)


# ---- the parts


def test_all_numbers_of_workers_but_a_chosen_one(monkeypatch):
    monkeypatch.setattr(bench_reading, "available_cores", lambda: 12)

    def counts(ranks, **data):
        config = Config(data=DataConfig(**data))
        rank = Rank(config=config, local_ranks=ranks, device=torch.device("cpu"), names=(), images=1, encoded=0)
        chosen = workers_of(rank)
        for name, config in chosen.items():
            assert name == f"--data.decode {config.data.decode} --data.workers {config.data.workers}"
        return [(config.data.decode[0], config.data.workers) for config in chosen.values()]

    threads = [("t", count) for count in (1, 2, 4, 8, 12)]
    processes = [("p", count) for count in (2, 4, 8, 12)]
    assert counts(1) == threads + processes
    assert counts(1, decode="processes") == processes
    assert counts(4) == [("t", 1), ("t", 2), ("t", 3), ("p", 2), ("p", 3)]
    assert counts(1, workers=3) == []


def test_turns_rotate_and_medians_count():
    order, said = [], []

    def contender(name, seconds):
        lengths = iter(seconds)
        return lambda: order.append(name) or {name: Turn(10, next(lengths), 1e-3, None)}

    contenders = {name: contender(name, seconds) for name, seconds in {"a": (1, 2, 100), "b": (5, 5, 5)}.items()}
    rows = interleave(contenders, 3, said.append)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [(row.name, row.images_per_second, row.cpu_us_per_image) for row in rows] == [("a", 5, 100), ("b", 2, 100)]
    assert said[2] == "round 2 of 3: b"


def test_a_turn_is_never_empty():
    assert until(0.0, repeat(7)).images == 7


def test_cpu_time_of_children_counts_while_they_live_and_afterwards():
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    before = cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout
        child.stdout.readline()
        alive = cpu_seconds() - before
        child.communicate("\n")
    assert alive > 0.45
    assert 0.45 < cpu_seconds() - before < 5


@pytest.mark.parametrize("suffix", ["jpg", "png", "ppm"])
def test_floors_make_the_very_pixels(tmp_path, suffix):
    shard = write_ours(tmp_path / "0.tar", 5, suffix, label=lambda number: number)
    floors = Floors([str(shard)], (32, 3), images=4, batch=8)
    sums = []
    for floor in (floors.decode, floors.gather):
        floors.out[:] = 0
        assert floor(0.0).images == 8
        sums.append(sorted(floors.out.sum(axis=(1, 2, 3)).tolist()))
    assert sums[0] == sums[1]
    assert len(set(sums[0])) == 4
    if suffix != "jpg":
        assert set(sums[0]) == {int(np.asarray(picture(number)).sum()) for number in range(4)}


@pytest.mark.parametrize("kind", bench_webdataset.KINDS)
@pytest.mark.parametrize("shape", [[32, 3], [48, 1]])
def test_webdataset_delivers_whole_epochs(folder, kind, shape):
    shards = sorted(map(str, folder.glob("*.tar")))
    turn = bench_webdataset.turn(kind=kind, shards=shards, shape=shape, batch=3 * SHARD, workers=0, seconds=0.0)
    assert turn.images == 3 * SHARD
    assert turn.first is not None


def test_a_shard_that_webdataset_cannot_read_is_one_line(tmp_path):
    task = {"kind": "as documented", "shape": [32, 3], "batch": 4, "workers": 0, "seconds": 0.0}
    with pytest.raises(UserError, match="--no_webdataset measures without it") as error:
        bench_webdataset.in_own_process(shards=[str(tmp_path / "none.tar")], **task)
    assert "\n" not in str(error.value)


# ---- wrong options


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "needs a name; there is loader"),
        (["disk"], "does not know 'disk'; there is loader"),
        (["loader", "--seconds", "x"], "--seconds x: must be a number"),
        (["loader", "--seconds", "nan"], "--seconds nan: must be more than 0"),
        (["loader", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["loader", "--out"], "Missing value for argument '--out'"),
        (["loader", "--out", "/no/such/folder/x.json"], "--out /no/such/folder/x.json: name a file in a folder"),
        (["loader", "--model.image_sise", "32"], "--model.image_size"),
        (["loader", "--data.reader", "stream"], "measures the indexed reader"),
        (["loader", "--world_size", "3", "--batch_size", "8"], "does not divide evenly"),
    ],
)
def test_wrong_options_are_one_line(arguments, told):
    with pytest.raises(UsageError) as error:
        bench.main(arguments)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_bad_shard_is_told_before_anything_is_measured(tmp_path, capsys, as_before):
    (tmp_path / "0.tar").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"0\.tar"):
        bench.main(["loader", "--data.shards", f"{tmp_path}/0.tar", *TINY, *QUICK])
    assert "round" not in capsys.readouterr().out


def test_help_has_its_own_options_and_the_trainings(capsys):
    assert bench.main(["--help"]) == 0
    assert "  loader " in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        bench.main(["loader", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--seconds FLOAT" in printed
    assert "--data.shards" in printed
