"""--wandb.artifacts and --wandb.share against the stand-in for W&B's server: what arrives, and what never leaves."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.shards import write_ours
from support.waiting import until
from support.wandb_runs import points, start, the_run

from dcgan_dist import cli
from dcgan_dist.__main__ import main
from dcgan_dist.config import flatten
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.gan.state import create_state
from dcgan_dist.run import checkpoint, wandb_artifacts
from dcgan_dist.run import wandb as run_wandb
from dcgan_dist.run.generator import find_checkpoint, load_generator
from dcgan_dist.train import main as train

FINGERPRINT = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def config(config):
    """A run that has the environment and the options of a trained one, and keeps two checkpoints."""
    model = ModelConfig(image_size=32, nz=4, ngf=4, ndf=4)
    data = DataConfig(shards=("https://me:hush@host/a.tar",), reader="stream")
    config = replace(config, model=model, checkpoint=CheckpointConfig(keep=2), data=data)
    (config.run_dir / "environment.json").write_text(json.dumps({"git_commit": "c0ffee", "world_size": 4}))
    return asking(config, artifacts="all")


def asking(config, **options):
    config = replace(config, wandb=replace(config.wandb, **options))
    (config.run_dir / "config.yaml").write_text(cli.dump(config))
    return config


def save(config, images):
    """A checkpoint as training saves it, after which older ones are removed."""
    state = create_state(replace(config, seed=images), torch.device("cpu"), torch.float32, scaled=False)
    about = {"images": images, "config": json.loads(json.dumps(flatten(config), default=str)), "data_images": 50}
    about["data_fingerprint"] = FINGERPRINT
    return checkpoint.save(config.run_dir / "checkpoints", images, state.tensors(), about, config.checkpoint.keep)


def name_best(config, images):
    (config.run_dir / "checkpoints" / "best").write_text(f"{images:09d}")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def versions(server, kind="checkpoint"):
    found = [one for one in server.artifacts.values() if one.collection.endswith(f"-{kind}") and one.committed]
    return sorted(found, key=lambda one: one.version)


def shown(server, kind="checkpoint"):
    return [(one.metadata["images"], sorted(one.aliases)) for one in versions(server, kind)]


def uploads(server):
    return sum(b"/files/" in path for path in server.received if path.startswith(b"/artifact/"))


def test_a_training_puts_checkpoints_generator_and_data_on_the_server(config, server, tmp_path, monkeypatch):
    shard = write_ours(tmp_path / "shard.tar", 16, size=40)
    shutil.rmtree(config.run_dir)
    given = (
        f"--run_dir {config.run_dir} --data.shards {shard} --wandb.mode online --wandb.artifacts all --images 64 "
        "--model.image_size 32 --model.nz 4 --model.ngf 4 --model.ndf 4 --batch_size 8 --data.workers 1 --log.every 8 "
        "--log.samples 1 --trackers wandb --log.no_page --checkpoint.every 16 --checkpoint.keep 2"
    )
    assert train(given.split()) == 0
    run, folders = the_run(server), checkpoint.all_checkpoints(config.run_dir / "checkpoints")
    assert versions(server)[-1].files == contents(folders[-1])
    assert shown(server)[-1] == (64, ["images-64", "latest"])
    assert len(shown(server)) <= 2
    (data,) = (one for one in server.artifacts.values() if one.kind == "dataset")
    fingerprint = json.loads((folders[-1] / "state.json").read_text())["data_fingerprint"]
    assert data.metadata == {"fingerprint": fingerprint, "images": 16}
    assert (data.files, set(data.used_by), data.collection) == ({}, {run.id}, f"data-{fingerprint[:16]}")
    about = versions(server)[-1].metadata
    assert about.items() >= {"data_fingerprint": fingerprint, "world_size": 1, "precision": "fp32"}.items()
    (generator,) = versions(server, "generator")
    assert generator.aliases == {"latest", "images-64"}
    for name, data in generator.files.items():
        (tmp_path / "loaded" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "loaded" / name).write_bytes(data)
    mine, *_ = load_generator(find_checkpoint(tmp_path / "loaded"), "netg_ema", "cpu")
    theirs, *_ = load_generator(folders[-1], "netg_ema", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert main(["sample", str(tmp_path / "loaded"), "--out", str(tmp_path / "pictures"), "--count", "2"]) == 0
    assert b"shard.tar" not in b"".join(contents(tmp_path / "loaded").values())
    assert not (config.run_dir / "wandb" / "upload").exists()


def test_a_resumed_run_sends_nothing_twice_and_the_server_keeps_as_many_as_the_folder(config, server, said):
    tracker = start(config, said)
    for images in (10, 20, 30):
        (path := save(config, images)).joinpath("mine.json").write_text("hush")
        tracker.checkpoint(path)
        until(lambda images=images: shown(server)[-1:] == [(images, [f"images-{images}", "latest"])])
    tracker.close(75)
    kept = [(20, ["images-20"]), (30, ["images-30", "latest"])]
    assert shown(server) == kept
    sent = uploads(server)
    tracker = start(config, said, images=30)
    tracker.checkpoint(config.run_dir / "checkpoints" / "000000030")
    tracker.close(75)
    assert (shown(server), uploads(server)) == (kept, sent)
    assert sent == 3 * len(versions(server)[0].files)
    copies = {path.read_bytes() for path in Path(os.environ["HOME"]).rglob("*") if path.is_file()}
    assert copies.isdisjoint(versions(server)[-1].files.values())
    assert b"hush" not in b"".join(server.received)


def test_checkpoints_are_removed_while_the_server_is_slow(config, server, said):
    server.silent.add("CreateArtifactFiles")
    tracker = start(config, said)
    first = save(config, 10)
    expected = contents(first)
    tracker.checkpoint(first)
    until(lambda: any(one.kind == "model" for one in server.artifacts.values()))
    for images in (20, 30, 40):
        tracker.checkpoint(save(config, images))
    assert not first.exists()
    held = [path.name.partition("-")[2] for path in (config.run_dir / "wandb" / "upload").iterdir()]
    assert sorted(held) == ["000000010", "000000040"]
    server.silent.clear()
    tracker.close()
    assert [one.files for one in versions(server)] == [expected, contents(config.run_dir / "checkpoints" / "000000040")]
    (line,) = (line for line in said if "faster" in line)
    assert line == "W&B: checkpoints are saved faster than they are sent; 000000020 and others are left out"


def test_the_best_checkpoint_alone_and_its_generator(config, server, said):
    config = asking(config, artifacts="best")
    tracker = start(config, said)
    for images in (10, 20, 30, 40):
        path = save(config, images)
        if images in (20, 30):
            name_best(config, images)
        tracker.checkpoint(path)
    tracker.close()
    assert shown(server)[-1] == (30, ["best", "images-30", "latest"])
    assert {images for images, _ in shown(server)} <= {20, 30}
    assert shown(server, "generator") == [(30, ["best", "images-30", "latest"])]


@pytest.mark.parametrize(("denied", "words"), [("read_only", "permission denied"), ("keeps", "permission denied")])
def test_a_server_that_refuses_costs_lines_and_never_the_run(config, server, said, denied, words):
    setattr(server, denied, True)
    tracker = start(config, said)
    artifacts = tracker._artifacts
    assert artifacts is not None
    for images in (10, 20, 30, 40, 50):
        tracker.scalars(images, {"loss/d": 0.5})
        tracker.checkpoint(save(config, images))
        until(lambda: not artifacts._waiting)
    tracker.close()
    lines = [line for line in said if "is not sent" in line]
    assert all(line.startswith("WARNING: W&B: the ") and words in line and "\n" not in line for line in lines)
    assert 1 <= len(lines) <= 6
    assert len(points(the_run(server).history, "loss/d")) == 5
    assert len(versions(server)) == (3 if denied == "keeps" else 0)  # bounded, although none can be deleted


def test_a_server_that_never_answers_costs_a_bounded_wait_and_sync_sends_the_rest(config, server, said, monkeypatch):
    monkeypatch.setattr(run_wandb, "FINISH_TIMEOUT", 2.0)
    server.silent.add("CreateArtifactFiles")
    tracker = start(config, said)
    tracker.checkpoint(save(config, 10))
    tracker.close()
    rest = f"dcgan-dist wandb sync {config.run_dir}"
    assert f"WARNING: W&B: artifacts have not arrived within 1 s; to send them: {rest}" in said
    assert not (config.run_dir / "wandb" / "upload").exists()
    server.silent.clear()
    (config.run_dir / "DONE").write_text("10")
    assert main(["wandb", "sync", str(config.run_dir)]) == 0
    sent = [(10, ["images-10", "latest"])]
    assert (shown(server), shown(server, "generator")) == (sent, sent)


def test_an_offline_attempt_keeps_no_copies(config, said):
    tracker = start(asking(config, mode="offline", share=("code",)), said)
    tracker.checkpoint(save(config, 10))
    tracker.close()
    assert (
        "W&B: offline: no artifacts are kept; `dcgan-dist wandb sync` sends the newest and the best checkpoint and, of "
        "a complete run, the generator; the code is not sent"
    ) in said
    assert not (config.run_dir / "wandb" / "upload").exists()


SECRETS = {"code": b"def open_artifacts(", "git": b"hush-remote/x.git", "host": b"hush-host"}


@pytest.mark.parametrize("share", [(), ("code",), ("git",), ("host",)])
def test_each_part_is_shared_only_if_it_is_asked_for(config, server, said, monkeypatch, share):
    monkeypatch.setattr(sys, "argv", ["train.py", "--hf_token", "hush-word"])
    monkeypatch.setattr("socket.gethostname", lambda: "hush-host")
    monkeypatch.setattr(wandb_artifacts, "git_remote", lambda _: "https://me:hush-key@hush-remote/x.git")
    tracker = start(asking(config, artifacts="none", share=share), said)
    tracker.scalars(0, {"loss/d": 1.0})
    tracker.close()
    everything = b"\n".join([*server.received, *(file for one in versions(server) for file in one.files.values())])
    assert {part for part, secret in SECRETS.items() if secret in everything} == set(share)
    for never in (b"hush-word", b"hush-key", b"def test_each_part"):
        assert never not in everything
    run = the_run(server)
    assert (run.about.get("repo"), run.about.get("host")) == (
        "https://hush-remote/x.git" if "git" in share else None,
        "hush-host" if "host" in share else None,
    )
    code = [one.files for one in server.artifacts.values() if one.kind == "code"]
    assert [set(files) >= {"train.py", "run/wandb.py"} for files in code] == [True] * ("code" in share)
    assert all(name.endswith(".py") for files in code for name in files)
    assert sys.argv[1:] == ["--hf_token", "hush-word"]
