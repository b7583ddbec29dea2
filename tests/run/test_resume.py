import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.shards import open_corpus, write_ours

from dcgan_dist.config import Config, flatten
from dcgan_dist.config.groups import DataConfig, ModelConfig, OptimizerConfig
from dcgan_dist.config.run_groups import CollapseConfig, DivergenceConfig, LogConfig, ResumeConfig
from dcgan_dist.data import order
from dcgan_dist.data.corpus import Corpus
from dcgan_dist.data.reading.stream import StreamUrls
from dcgan_dist.errors import UsageError, UserError
from dcgan_dist.gan.state import TrainState, create_state
from dcgan_dist.parallel.world import launch
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.stats import Stats


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return [write_ours(folder / f"{name}.tar", 3, first=first) for first, name in ((0, "a"), (3, "b"))]


@pytest.fixture
def config(tmp_path, shards):
    model = ModelConfig(image_size=32, nz=3, ngf=2, ndf=2)
    return Config(run_dir=tmp_path / "run", model=model, data=DataConfig(shards=tuple(map(str, shards))))


@pytest.fixture
def data(config):
    return open_corpus(config.data.shards)


@pytest.fixture
def said():
    return []


def fresh(config: Config) -> TrainState:
    return create_state(config, torch.device("cpu"), torch.float32, scaled=False)


def save(config: Config, data: Corpus | StreamUrls, images: int = 100, rollbacks: int = 0) -> Path:
    state, stats = fresh(config), Stats()
    state.rollbacks = rollbacks
    state.images, state.iteration = images, images // 10
    stats.add({"loss/d": torch.arange(4.0)})
    tensors = state.tensors() | {"stats": stats.state_dict()}
    about = resume.describe(config, data, state)
    return checkpoint.save(RunFolder(config.run_dir).checkpoints, images, tensors, about, keep=9)


def find(config: Config, data: Corpus | StreamUrls, said: list[str]) -> Path | None:
    return resume.find(config, RunFolder(config.run_dir), data, said.append)


def refusal(config: Config, data: Corpus | StreamUrls) -> str:
    with pytest.raises(UsageError) as error:
        find(config, data, [])
    assert "\n" not in str(error.value)
    return str(error.value)


def allow(config: Config, *names: str) -> Config:
    return replace(config, resume=ResumeConfig(allow_changes=names))


def test_a_new_run_starts_at_0(config, data, said):
    for source in ("auto", "never"):
        assert find(replace(config, resume=ResumeConfig(source=source)), data, said) is None
    assert said == []


def test_the_same_command_goes_on(config, data, said):
    save(config, data)
    newest = save(config, data, 12_800)
    assert find(config, data, said) == newest
    assert said == [f"resuming from {newest}: 12,800 images seen"]


def test_a_damaged_newest_one_is_reported_and_the_one_before_is_taken(config, data, said):
    before, newest = save(config, data), save(config, data, 200)
    (newest / "netd.safetensors").unlink()
    assert find(config, data, said) == before
    assert said[0].startswith(f"WARNING: {newest / 'netd.safetensors'}: cannot be read")
    assert said[1] == f"resuming from {before}: 100 images seen"


def test_changed_options_are_named_with_both_values_and_the_flag_that_allows_them(config, data):
    path = save(config, data)
    changed = replace(config, batch_size=64, augment=("color",), optimizer=OptimizerConfig(g_lr=1e-3))
    assert refusal(changed, data) == (
        f"{path} was trained with other options: --augment [] -> ['color'], --batch_size 128 -> 64, --optimizer.g_lr "
        "0.0002 -> 0.001; go back to them, allow them by --resume.allow_changes augment batch_size optimizer.g_lr, or "
        "name a new --run_dir"
    )


CHANGES = [
    ("model", {"ngf": 3}, "--model.ngf 2 -> 3"),
    ("model", {"d_norm": "layer"}, "--model.d_norm batch -> layer"),
    ("loss", {"name": "hinge"}, "--loss.name non_saturating -> hinge"),
    ("ema", {"half_life": 5}, "--ema.half_life 10000 -> 5"),
    ("data", {"hflip": True}, "--data.hflip False -> True"),
    ("data", {"classes": ("1",)}, "--data.classes [] -> ['1']"),
]


@pytest.mark.parametrize(("group", "change", "told"), CHANGES, ids=[told for _, _, told in CHANGES])
def test_another_architecture_or_training_is_refused_and_stays_on_disk(config, data, group, change, told):
    path = save(config, data)
    before = {file: file.read_bytes() for file in path.iterdir()}
    changed = replace(config, **{group: replace(getattr(config, group), **change)})
    assert refusal(changed, data).startswith(f"{path} was trained with other options: {told}; go back to them")
    assert {file: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("about", [{}, {"config": []}, {"config": {}, "data_images": 6}])
@pytest.mark.parametrize("source", ["auto", "somewhere", "the same"])
def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_one_line(config, data, about, source):
    """Its manifest fits: somebody wrote both anew."""
    path = checkpoint.save(RunFolder(config.run_dir).checkpoints, 100, {}, {"images": 100} | about, keep=9)
    resumed = {"auto": "auto", "somewhere": str(config.run_dir.parent / "x"), "the same": str(path)}[source]
    with pytest.raises(UserError, match=rf"^{path}/state.json: does not record how the run was trained; name another"):
        find(replace(config, resume=ResumeConfig(source=resumed)), data, [])


@pytest.mark.parametrize("file", ["netg", "netd", "netg_ema", "optimizer_d", "stats"])
def test_a_checkpoint_without_one_of_its_parts_is_one_line(config, data, file):
    state, stats = fresh(config), Stats()
    tensors = state.tensors() | {"stats": stats.state_dict()}
    del tensors[file]
    about = resume.describe(config, data, state)
    path = checkpoint.save(RunFolder(config.run_dir).checkpoints, 100, tensors, about, keep=9)
    with pytest.raises(UserError, match=rf"^{path}: does not fit these networks \('{file}'\)$"):
        resume.restore(path, fresh(config), Stats(), launch(config))


def test_allowed_changes_pass_by_name_or_by_group(config, data, said):
    path = save(config, data)
    changed = replace(config, batch_size=64, optimizer=OptimizerConfig(g_lr=1e-3, d_lr=1e-3))
    assert "--optimizer.d_lr" in refusal(allow(changed, "batch_size", "optimizer.g_lr"), data)
    assert find(allow(changed, "batch_size", "optimizer.g_lr", "optimizer.d_lr"), data, said) == path
    assert find(allow(changed, "batch_size", "optimizer"), data, said) == path


def test_the_end_of_the_run_is_part_of_a_falling_learning_rate(config, data, said):
    path = save(replace(config, optimizer=OptimizerConfig(decay="linear")), data)
    longer = replace(config, optimizer=OptimizerConfig(decay="linear"), images=config.images * 2)
    assert "--images 2000000 -> 4000000" in refusal(longer, data)
    assert find(replace(longer, resume=ResumeConfig(allow_changes=("images",))), data, said) == path


def test_what_happens_at_a_fault_may_change_but_not_the_rate_that_one_has_left(config, data, said):
    options = DivergenceConfig(policy="rollback", most_rollbacks=9, lr_factor=0.5)
    changed = replace(config, divergence=options, collapse=CollapseConfig(policy="rollback", reports=2))
    path = save(config, data)
    assert find(changed, data, said) == path
    save(config, data, 200, rollbacks=1)
    assert "--divergence.lr_factor 1.0 -> 0.5; go back" in refusal(changed, data)


def test_a_checkpoint_from_before_rollbacks_is_read(config):
    state = fresh(config)
    state.rollbacks, state.signs = 2, {"health/ms_ssim": [1, 100]}
    older = {name: value for name, value in state.numbers().items() if name not in ("rollbacks", "signs")}
    state.load(state.tensors(), older)
    assert (state.rollbacks, state.signs) == (0, {})


def test_a_run_that_began_from_a_path_goes_on_by_the_same_command(config, data, said, tmp_path):
    """After a preemption the command is the same, --resume PATH included, and must not begin at PATH again."""
    origin = save(config, data)
    new = replace(config, run_dir=tmp_path / "new", resume=ResumeConfig(source=str(origin)))
    assert find(new, data, said) == origin
    later = save(new, data, 6_400)
    assert find(new, data, said) == later


def test_what_does_not_change_the_training_may_change(config, data, said, tmp_path):
    path = save(config, data)
    moved = tmp_path / "elsewhere"
    shutil.copytree(Path(config.data.shards[0]).parent, moved)
    data_options = DataConfig(shards=(f"{moved}/*.tar",), workers=3, prefetch=9)
    free = replace(
        config, images=5, world_size=1, channels_last=False, debug=True, data=data_options, log=LogConfig(every=7)
    )
    assert find(free, open_corpus(data_options.shards), said) == path


def test_every_free_option_exists():
    names = set(flatten(Config()))
    groups = {name.partition(".")[0] for name in names if "." in name}
    assert set(resume.FREE) <= names | groups


def test_what_decides_the_training_is_not_free():
    flat = flatten(Config())
    changed = set(resume.changed_options(flat, dict.fromkeys(flat, "changed"), resume.FREE))
    assert {name for name in changed if "." not in name} == {
        "batch_size", "accumulate", "seed", "precision", "sync_batchnorm", "augment"
    }  # fmt: skip
    learnt = ("model", "loss", "optimizer", "ema")
    assert changed >= {name for name in flat if name.partition(".")[0] in learnt}
    assert {name for name in changed if name.startswith("data.")} == {
        "data.reader", "data.classes", "data.hflip", "data.faces", "data.image_key", "data.label_key", "data.resampled",
        "data.pipeline",
    }  # fmt: skip
    assert {name.partition(".")[0] for name in changed if "." in name} == {*learnt, "data"}


def test_an_option_that_an_older_version_did_not_have_is_no_change():
    assert resume.changed_options({"seed": 0, "gone": 1}, {"seed": 0, "new": 2}, ()) == []


def test_another_data_set_is_refused(config, data, said):
    path = save(config, data)
    fewer = replace(config, data=DataConfig(shards=config.data.shards[:1]))
    message = refusal(fewer, open_corpus(fewer.data.shards))
    assert message.startswith(f"{path} was trained on another data set (6 images, now 3, or other images, ")
    assert "labels or order of shards); go back to it" in message
    assert "--resume.allow_changes data.shards" in message
    turned = replace(config, data=DataConfig(shards=config.data.shards[::-1]))
    assert "or order of shards" in refusal(turned, open_corpus(turned.data.shards))
    assert find(allow(turned, "data.shards"), open_corpus(turned.data.shards), said) == path


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (["{}/a.tar", "{}/b.tar"], ["{}/b.tar", "{}/a.tar"], True),  # streams are shuffled
        (["{}/a.tar"], ["{}/moved/a.tar"], True),
        (["{}/a.tar"], ["{}/b.tar"], False),
        (["{}/a.tar"], ["{}/larger/a.tar"], False),
        (["{}/a.tar"], ["{}/a.tar", "{}/b.tar"], False),
        (["pipe:curl https://u:p@one/x/a.tar?sig=1"], ["pipe:curl https://two/y/a.tar?sig=2"], True),
        (["pipe:curl https://one/x/a.tar"], ["pipe:curl https://one/x/b.tar"], False),
        (["pipe:cat a.tar | tee b.tar.gz"], ["pipe:cat a.tar | tee c.tar.gz"], False),
        (["pipe:make 1"], ["pipe:make 2"], True),  # nobody can know
        (["pipe:make 1"], ["pipe:make 1", "pipe:make 2"], False),
    ],
)
def test_a_stream_is_known_by_the_names_of_its_shards(before, now, same, config, said, tmp_path):
    for name, size in (("a.tar", 3), ("b.tar", 3), ("moved/a.tar", 3), ("larger/a.tar", 4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    streamed = replace(config, data=replace(config.data, reader="stream"))
    first, second = (StreamUrls(url.format(tmp_path) for url in urls) for urls in (before, now))
    path = save(streamed, first)
    if same:
        assert find(streamed, second, said) == path
    else:
        assert refusal(streamed, second).startswith(f"{path} was trained on other shards, by their names or the sizes")
        assert find(allow(streamed, "data.shards"), second, said) == path


def test_a_stream_of_an_older_version_goes_on_without_a_check_of_its_data(config, said):
    streamed = replace(config, data=replace(config.data, reader="stream"))
    sources = StreamUrls(config.data.shards)
    vars(sources)["fingerprint"] = None
    path = save(streamed, sources)
    assert find(streamed, StreamUrls(["other.tar"]), said) == path


def test_a_dry_run_which_draws_no_faces_knows_nothing_of_their_shards(config, said):
    streamed = replace(config, data=DataConfig(reader="stream"))
    path = save(streamed, StreamUrls(["faces.tar"]))
    assert find(streamed, StreamUrls(), said) == path


def test_a_run_of_another_version_of_the_order_is_refused(config, data, monkeypatch):
    """Also where the data look different to that version; --resume.allow_changes allows other data, not this."""
    path = save(config, data)
    monkeypatch.setattr(order, "VERSION", order.VERSION + 1)
    monkeypatch.setattr(Corpus, "fingerprint", "0" * 16)
    allowed = replace(config, resume=replace(config.resume, allow_changes=("data.shards",)))
    for now in (config, allowed):
        assert refusal(now, data) == (
            f"{path} was trained in version {order.VERSION - 1} of the order of images, and this is version "
            f"{order.VERSION}: images would be repeated and left out; use the release of dcgan_dist that wrote it, or "
            "name a new --run_dir"
        )


def test_a_warm_start_is_not_advised_to_name_the_new_folder_that_it_has(config, data, monkeypatch, tmp_path):
    path = save(config, data)
    warm = replace(config, run_dir=tmp_path / "warm", resume=ResumeConfig(source=str(path)))
    fewer = replace(warm, data=DataConfig(shards=config.data.shards[:1]))
    messages = [
        refusal(replace(warm, seed=9), data),
        refusal(fewer, open_corpus(fewer.data.shards)),
        refusal(replace(warm, images=100), data),
    ]
    monkeypatch.setattr(order, "VERSION", order.VERSION + 1)
    for message in (*messages, refusal(warm, data)):
        assert message.endswith(", or leave --resume out, to begin at 0 images")
        assert "name a new --run_dir" not in message


@pytest.mark.parametrize("source", ["auto", "path", "link elsewhere"])
def test_a_checkpoint_that_was_moved_and_linked_back_is_the_runs_own(config, data, said, tmp_path, source):
    folder, path = RunFolder(config.run_dir), save(config, data)
    moved = tmp_path / "disk" / "000000100"
    moved.parent.mkdir()
    if source == "link elsewhere":  # to it, where it always was
        path = moved
        path.symlink_to(folder.checkpoints / path.name)
    else:
        path.rename(moved)
        path.symlink_to(moved)
    given = "auto" if source == "auto" else str(path)
    found = find(replace(config, resume=ResumeConfig(source=given)), data, said)
    assert found == path
    assert resume.is_own(path, folder)


def test_never_refuses_a_folder_that_has_a_checkpoint(config, data):
    save(config, data)
    never = replace(config, resume=ResumeConfig(source="never"))
    assert refusal(never, data) == (
        f"--run_dir {config.run_dir} holds the checkpoint 000000100 and --resume is never; name another folder"
    )


def test_a_checkpoint_of_another_run_by_its_path(config, data, said, tmp_path):
    other = save(config, data, 300)
    new = replace(config, run_dir=tmp_path / "new", resume=ResumeConfig(source=str(other)))
    assert find(new, data, said) == other
    assert said == [f"resuming from {other}: 300 images seen"]


@pytest.mark.parametrize("path", ["", "checkpoints", "checkpoints/latest", "checkpoints/best"])
def test_a_run_stands_for_its_newest_checkpoint(config, data, said, tmp_path, path):
    older, newer = save(config, data, 200), save(config, data, 300)
    (newer.parent / "best").write_text(older.name)
    new = replace(config, run_dir=tmp_path / "new", resume=ResumeConfig(source=str(config.run_dir / path)))
    assert find(new, data, said) == (older if path.endswith("best") else newer)


def test_an_older_checkpoint_of_the_same_run_is_refused_for_the_newer_ones_would_win_the_next_time(config, data):
    older, _ = save(config, data, 100), save(config, data, 200)
    back = replace(config, resume=ResumeConfig(source=str(older)))
    assert refusal(back, data).startswith(
        f"--resume {older}: --run_dir {config.run_dir} holds newer checkpoints (000000200)"
    )


def test_a_path_without_a_checkpoint(config, data, tmp_path):
    missing = replace(config, resume=ResumeConfig(source=str(tmp_path / "none")))
    assert refusal(missing, data) == (
        f"--resume {tmp_path / 'none'}: no such checkpoint folder, nor a run's folder with one; give auto, never, or a "
        "path like RUN or RUN/checkpoints/000012800"
    )
    empty = tmp_path / "checkpoints" / "000000100"
    empty.mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{empty / 'manifest.json'}: cannot be read"):
        find(replace(config, resume=ResumeConfig(source=str(empty))), data, [])


def test_the_description_is_json(config, data):
    about = resume.describe(config, data, fresh(config))
    assert json.loads(json.dumps(about)) == about
    assert about["config"]["run_dir"] == str(config.run_dir)
    assert (about["data_images"], about["order_version"]) == (6, order.VERSION)


def test_the_state_is_restored(config, data):
    path = save(replace(config, seed=1), data)
    state, stats = fresh(config), Stats()
    resume.restore(path, state, stats, launch(config))
    expected = fresh(replace(config, seed=1))
    assert (state.images, state.iteration) == (100, 10)
    for file, part in expected.tensors().items():
        for name, value in part.items():
            assert torch.equal(state.tensors()[file][name], value)
    assert stats.reduce(lambda rows: rows) == {"loss/d": 1.5}


def test_other_networks_than_the_checkpoints_are_one_line(config, data):
    path = save(config, data)
    wider = replace(config, model=replace(config.model, ngf=4))
    with pytest.raises(UserError, match="does not fit these networks") as error:
        resume.restore(path, fresh(wider), Stats(), launch(config))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
