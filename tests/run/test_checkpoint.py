import errno
import hashlib
import json
import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import rewrite_manifest
from support.disk import no_file_larger_than

from dcgan_dist.errors import UserError
from dcgan_dist.run import checkpoint
from dcgan_dist.run.lease import Lease

FILES = {"netg.safetensors", "optimizer_g.safetensors", "state.json", "manifest.json"}


def tensors(seed: float = 0.0) -> checkpoint.Tensors:
    return {
        "netg": {
            "layers.0.weight": torch.full((2, 3, 4, 4), seed).contiguous(memory_format=torch.channels_last),
            "layers.1.running_mean": torch.arange(3, dtype=torch.float64) + seed,
            "layers.1.num_batches_tracked": torch.tensor(7),
        },
        "optimizer_g": {"layers.0.weight/step": torch.tensor(3.0), "layers.0.weight/exp_avg": torch.zeros(2, 3, 4, 4)},
    }


def save(folder: Path, images: int, keep: int = 3) -> Path:
    return checkpoint.save(folder, images, tensors(images), {"images": images, "config": {"a": [1, None]}}, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def said():
    return []


def test_what_is_saved_is_loaded(folder):
    path = save(folder, 12_800)
    assert (path.name, names(folder)) == ("000012800", ["000012800", "latest"])
    assert set(names(path)) == FILES
    loaded, state = checkpoint.load(path)
    assert state == {"images": 12_800, "config": {"a": [1, None]}}
    expected = tensors(12_800)
    assert {file: set(part) for file, part in loaded.items()} == {file: set(part) for file, part in expected.items()}
    for file, part in expected.items():
        for name, value in part.items():
            assert torch.equal(loaded[file][name], value)
            assert loaded[file][name].dtype == value.dtype
    (network, same) = checkpoint.load(path, ["netg"])
    assert same == state
    assert {file: values.keys() for file, values in network.items()} == {"netg": expected["netg"].keys()}


def test_a_network_that_is_not_there_is_named(folder):
    path = save(folder, 1)
    with pytest.raises(UserError, match=r"000000001: has no netd\.safetensors$"):
        checkpoint.load(path, ["netd"])


def test_the_manifest_has_sizes_and_checksums_of_every_other_file(folder):
    path = save(folder, 12_800)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["format"], manifest["images"]) == (2, 12_800)
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    for name, about in manifest["files"].items():
        data = (path / name).read_bytes()
        assert about == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_newest_are_kept(folder):
    for images in (1_000, 2_000, 3_000, 999_999_000, 1_000_000_000):
        save(folder, images, keep=2)
        assert (folder / "latest").read_text() == f"{images:09d}"
    assert names(folder) == ["1000000000", "999999000", "latest"]
    assert [path.name for path in checkpoint.all_checkpoints(folder)] == ["999999000", "1000000000"]


def test_the_newest_good_one_is_found(folder, said):
    assert checkpoint.find_newest(folder, said.append) is None
    one, two, three = (save(folder, images) for images in (100, 200, 300))
    assert checkpoint.find_newest(folder, said.append) == three
    assert said == []
    flip(three / "netg.safetensors")
    assert checkpoint.find_newest(folder, said.append) == two
    assert said == [f"WARNING: {three / 'netg.safetensors'}: the checksum is wrong; trying the one before"]
    (two / "manifest.json").unlink()
    assert checkpoint.find_newest(folder, said.append) == one
    assert (
        said[-1]
        == f"WARNING: {two / 'manifest.json'}: cannot be read (No such file or directory); trying the one before"
    )
    flip(one / "state.json")
    with pytest.raises(UserError, match=f"^{folder}: none of the 3 checkpoints is intact; restore one, or start again"):
        checkpoint.find_newest(folder, said.append)


def test_damaged_newer_ones_push_no_good_one_out(folder, said):
    save(folder, 100, keep=2)
    for images in (200, 300):
        flip(save(folder, images, keep=9) / "netg.safetensors")
    new = save(folder, 150, keep=2)
    assert new.exists()
    assert checkpoint.find_newest(folder, said.append) == new
    again = save(folder, 200, keep=2)  # in place of a damaged one
    assert checkpoint.verify(again) is None
    assert names(folder) == ["000000150", "000000200", "000000300", "latest"]


def cut(path: Path) -> str:
    file = path / "netg.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    return f"{file}: has {len(whole) - 1} bytes instead of {len(whole)}"


def emptied(path: Path) -> str:
    (path / "manifest.json").write_bytes(b"")
    return f"{path / 'manifest.json'}: is damaged, or not the manifest of a checkpoint"


def without_a_file(path: Path) -> str:
    (path / "optimizer_g.safetensors").unlink()
    return f"{path / 'optimizer_g.safetensors'}: cannot be read (No such file or directory)"


def flipped(path: Path) -> str:
    flip(path / "state.json")
    return f"{path / 'state.json'}: the checksum is wrong"


def of_a_later_format(path: Path) -> str:
    manifest = json.loads((path / "manifest.json").read_text()) | {"format": 3}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return f"{path}: has format 3, and this version reads 2"


def of_something_else(path: Path) -> str:
    (path / "manifest.json").write_text('{"name": "app", "version": "1.0", "files": ["a", "b"]}')
    return f"{path / 'manifest.json'}: is damaged, or not the manifest of a checkpoint"


def a_list(path: Path) -> str:
    (path / "manifest.json").write_text('{"format": 2, "files": ["netg.safetensors"]}')
    return f"{path / 'manifest.json'}: is damaged, or not the manifest of a checkpoint"


def without_a_state(path: Path) -> str:
    rewrite_manifest(path, lambda files: files.pop("state.json"))
    return f"{path / 'manifest.json'}: is damaged, or not the manifest of a checkpoint"


DAMAGES = [cut, emptied, without_a_file, flipped, of_a_later_format, of_something_else, a_list, without_a_state]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_line(folder, damage):
    path = save(folder, 100)
    expected = damage(path)
    assert checkpoint.verify(path) == expected
    for act in (checkpoint.load, lambda path: checkpoint.load(path, ["netg"])):
        with pytest.raises(UserError) as error:
            act(path)
        assert (str(error.value), error.value.exit_code) == (expected, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole"), 100)


@given(st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(whole, data):
    """In every file, the manifest too."""
    path = whole / data.draw(st.sampled_from(sorted(FILES)))
    intact = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(intact) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(intact)
    damaged[place] ^= 1 << bit
    try:
        path.write_bytes(damaged if data.draw(st.booleans()) else intact[:place])
        problem = checkpoint.verify(whole)
        assert problem is not None
        assert "\n" not in problem
        with pytest.raises(UserError):
            checkpoint.load(whole)
    finally:
        path.write_bytes(intact)
    assert checkpoint.verify(whole) is None


def test_every_single_bit_of_the_manifest_counts(whole):
    """Also of what no load asks for."""
    path = whole / "manifest.json"
    intact = path.read_bytes()
    try:
        for place in range(len(intact)):
            for bit in range(8):
                damaged = bytearray(intact)
                damaged[place] ^= 1 << bit
                path.write_bytes(damaged)
                assert checkpoint.verify(whole), (place, bit)
    finally:
        path.write_bytes(intact)


def test_tensors_of_every_type_and_layout_come_back(folder):
    types = (torch.int64, torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool)
    values = {f"of {dtype}": torch.ones(2, 3).to(dtype) for dtype in types}
    values |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "turned": torch.arange(6.0).reshape(2, 3).T}
    values |= {"late": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    path = checkpoint.save(folder, 1, {"netg": values}, {"images": 1}, 2)
    found = checkpoint.load(path)[0]["netg"]
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_save_that_was_killed_leaves_nothing_behind(folder, said):
    old = save(folder, 100)
    for name in (".tmp-000000150", ".tmp-000000200"):
        (folder / name).mkdir()
        (folder / name / "netg.safetensors").write_bytes(b"half")
    (folder / ".latest.host.99999999.tmp").write_bytes(b"")
    assert checkpoint.find_newest(folder, said.append) == old
    new = save(folder, 200)
    assert checkpoint.find_newest(folder, said.append) == new
    assert not list(folder.glob(".tmp-*"))
    assert (said, checkpoint.verify(new)) == ([], None)


def test_other_things_in_the_folder_are_left_alone(folder, said):
    for images in (100, 200, 300):
        save(folder, images, keep=2)
    shutil.copytree(folder / "000000200", folder / "000000200-before-the-crash")
    (folder / "000000999").write_text("not a folder")
    for name in "2024", "1-left":
        (folder / name).mkdir()
    newest = save(folder, 400, keep=2)
    assert checkpoint.find_newest(folder, said.append) == newest
    others = {"000000200-before-the-crash", "000000999", "2024", "1-left"}
    assert set(names(folder)) == {"000000300", "000000400", "latest"} | others


def test_a_file_that_somebody_put_into_a_checkpoint_keeps_it(folder, said):
    for images in (100, 200, 300):
        (save(folder, images, keep=3) / ("notes.txt" if images == 100 else ".DS_Store")).touch()
    lease = Lease(folder.parent, said.append)
    for images in (400, 500, 600):
        checkpoint.save(folder, images, tensors(), {"images": images}, 1, lease)
    assert names(folder) == ["000000100", "000000500", "000000600", "latest"]
    assert said == [
        f"WARNING: {folder}/000000100 is not removed, because it holds notes.txt, which training did not write; move "
        "it elsewhere"
    ]
    (folder / "000000100" / "notes.txt").unlink()
    checkpoint.save(folder, 700, tensors(), {"images": 700}, 1, lease)
    assert names(folder) == ["000000600", "000000700", "latest"]


@pytest.mark.parametrize("way", ["damaged", "left behind", "no longer the best"])
def test_a_file_that_somebody_put_into_a_checkpoint_outlives_it(folder, said, way):
    """Where the checkpoint cannot stay under its name, for no attempt is to go on from it."""
    lease = Lease(folder.parent, said.append)
    path = save(folder, 200)
    if way == "no longer the best":
        path = shutil.copytree(path, folder / "000000200-left")
        (folder / "best").write_text("000000200")
    (path / "notes.txt").write_text("mine")
    if way == "damaged":
        flip(path / "state.json")
        checkpoint.save(folder, 200, tensors(), {"images": 200}, 3, lease)
        assert checkpoint.verify(path) is None
    else:
        checkpoint.leave_behind(folder / "000000200", lease)
        assert not (folder / "000000200").exists()
    kept = folder / f"{path.name}-kept-1"
    assert (kept / "notes.txt").read_text() == "mine"
    assert said == [f"WARNING: {path} is now {kept.name}, because it holds notes.txt, which training did not write"]
    save(folder, 300)
    assert kept.exists()


def test_a_folder_that_does_not_answer_does_not_keep_the_others(folder, monkeypatch):
    for images in (100, 200, 300):
        save(folder, images)
    look = Path.iterdir

    def stale(path):
        if path.name == "000000100":
            raise OSError(errno.ESTALE, "Stale file handle")
        return look(path)

    monkeypatch.setattr(Path, "iterdir", stale)
    save(folder, 400, keep=2)
    assert names(folder) == ["000000100", "000000300", "000000400", "latest"]


@pytest.mark.parametrize("text", ["000000100", "000000100\n"])
def test_the_best_one_is_never_removed(folder, text):
    save(folder, 100)
    (folder / "best").write_text(text)
    for images in (200, 300, 400):
        save(folder, images, keep=2)
    assert names(folder) == ["000000100", "000000300", "000000400", "best", "latest"]


def test_the_best_one_stays_when_the_run_goes_back_to_before_it(folder, said):
    for images in (100, 200, 300):
        save(folder, images)
    (folder / "best").write_text("000000200")
    for images in (200, 300):
        checkpoint.leave_behind(folder / f"{images:09d}", Lease(folder))
    assert names(folder) == ["000000100", "000000200-left", "best", "latest"]
    assert (folder / "best").read_text() == "000000200-left"
    assert checkpoint.find_newest(folder, said.append) == folder / "000000100"  # no attempt goes on from it
    assert checkpoint.load(folder / "000000200-left")[1]["images"] == 200
    for images in (150, 200, 250, 300):
        save(folder, images, keep=2)
    assert names(folder) == ["000000200-left", "000000250", "000000300", "best", "latest"]
    (folder / "best").write_text("000000300")  # a better one: the other is let go
    save(folder, 350, keep=2)
    assert names(folder) == ["000000300", "000000350", "best", "latest"]


def test_a_best_one_that_is_left_behind_again_takes_the_place_of_the_first(folder):
    for count in (1, 2):
        save(folder, 100)
        checkpoint.save(folder, 200, tensors(count), {"images": 200, "config": {}}, keep=3)
        (folder / "best").write_text("000000200")
        checkpoint.leave_behind(folder / "000000200", Lease(folder))
    loaded, _ = checkpoint.load(folder / "000000200-left")
    assert loaded["netg"]["layers.0.weight"].unique().tolist() == [2.0]
    assert names(folder) == ["000000100", "000000200-left", "best", "latest"]


def test_an_attempt_that_was_killed_while_it_left_the_best_one_behind_protects_it_still(folder):
    """`best` has the new name already, the folder has not."""
    save(folder, 100)
    (folder / "best").write_text("000000100-left")
    for images in (200, 300, 400):
        save(folder, images, keep=2)
    assert names(folder) == ["000000100", "000000300", "000000400", "best", "latest"]
    checkpoint.leave_behind(folder / "000000100", Lease(folder))
    assert names(folder) == ["000000100-left", "000000300", "000000400", "best", "latest"]


def test_a_disk_that_does_not_say_which_is_the_best_loses_none(folder, monkeypatch):
    """For a moment, in which old ones would be removed: that is left to the next save."""
    save(folder, 100)
    (folder / "best").write_text("000000100")
    read = Path.read_text

    def stale(path, *given, **more):
        if path.name == "best":
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path, *given, **more)

    with monkeypatch.context() as moment:
        moment.setattr(Path, "read_text", stale)
        for images in (200, 300, 400):
            save(folder, images, keep=2)
        with pytest.raises(OSError, match="Stale"):
            checkpoint.leave_behind(folder / "000000100", Lease(folder))
    assert names(folder) == ["000000100", "000000200", "000000300", "000000400", "best", "latest"]
    save(folder, 500, keep=2)
    assert names(folder) == ["000000100", "000000400", "000000500", "best", "latest"]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"no such", b"../000000100", b"000000999", b"x" * 5000])
def test_what_names_no_checkpoint_protects_none(folder, text):
    save(folder, 100)
    (folder / "best").write_bytes(text)
    for images in (200, 300):
        save(folder, images, keep=2)
    assert names(folder) == ["000000200", "000000300", "best", "latest"]


def test_where_the_best_one_cannot_be_kept_nothing_changes(folder, monkeypatch):
    """An older one that was left behind is in the way, and does not go."""
    save(folder, 100)
    save(folder, 200)
    (folder / "000000200-left").mkdir()
    (folder / "best").write_text("000000200")

    def refuse(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as moment:
        moment.setattr(checkpoint.shutil, "rmtree", refuse)
        moment.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="Stale"):
            checkpoint.leave_behind(folder / "000000200", Lease(folder))
    assert (folder / "best").read_text() == "000000200"
    assert checkpoint.verify(folder / "000000200") is None


def test_what_is_only_compared_is_not_held_in_memory(folder):
    big = {"netg": {"weight": torch.zeros(16_000_000)}}  # 64 MB
    path = checkpoint.save(folder, 1, big, {"images": 1}, keep=2)
    tracemalloc.start()
    assert checkpoint.verify(path) is None
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4e6


def test_two_intact_ones_stay_even_if_the_newer_of_them_have_rotted(folder, said):
    """Else one more damaged file would lose the run."""
    for images in (100, 200, 300, 400):
        save(folder, images, keep=9)
    for images in (300, 400):
        flip(folder / f"{images:09d}" / "netg.safetensors")
    newest = save(folder, 500, keep=2)
    assert names(folder) == ["000000200", "000000300", "000000400", "000000500", "latest"]
    flip(newest / "state.json")
    assert checkpoint.find_newest(folder, said.append) == folder / "000000200"


def test_a_full_disk_is_one_line_and_the_older_ones_stay(folder):
    """The kernel refuses to write files beyond a size, as it does on a full disk or over a quota."""
    older = save(folder, 100)
    before = {path: path.read_bytes() for path in older.iterdir()}
    with no_file_larger_than(300), pytest.raises(UserError) as error:
        save(folder, 200, keep=2)
    message = str(error.value)
    assert message.startswith(f"{folder / '000000200'}: the checkpoint could not be saved (File too large; ")
    assert message.endswith(" MB free); older ones are untouched")
    assert "\n" not in message
    assert names(folder) == ["000000100", "latest"]
    assert {path: path.read_bytes() for path in older.iterdir()} == before
    assert checkpoint.verify(older) is None
    assert checkpoint.verify(save(folder, 200, keep=2)) is None  # once there is room


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"000000100: the checkpoint could not be saved \(Not a directory; "):
        save(tmp_path / "file", 100)


class Exploding:
    """Unpickling this writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("resealed", [False, True], ids=["planted alone", "planted with a manifest that fits"])
@pytest.mark.parametrize("name", ["netg.safetensors", "optimizer_g.safetensors", "state.json", "manifest.json"])
def test_a_pickle_in_place_of_a_file_is_refused_and_does_not_run(folder, tmp_path, name, resealed):
    path = save(folder, 100)
    (path / name).write_bytes(pickle.dumps(Exploding(tmp_path / "trace")))
    if resealed and name != "manifest.json":
        rewrite_manifest(path, lambda files: None)
        assert checkpoint.verify(path) is None
    with pytest.raises(UserError, match=f"^{path / name}: [^\n]+$"):
        checkpoint.load(path)
    assert not (tmp_path / "trace").exists()


def test_a_manifest_that_names_files_elsewhere_is_refused(folder, tmp_path):
    path = save(folder, 100)
    (folder / "secret").write_bytes(b"{}")
    for name in ("../secret", str(folder / "secret")):
        rewrite_manifest(path, lambda files, name=name: files.update({name: {}}))
        problem = checkpoint.verify(path)
        assert problem == f"{path / 'manifest.json'}: is damaged, or not the manifest of a checkpoint"
        rewrite_manifest(path, lambda files, name=name: files.pop(name))
    assert checkpoint.verify(path) is None


OPENED: list[str] = []
WATCHING: list[bool] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if WATCHING and event == "open" else None)


def test_only_what_the_manifest_names_is_ever_opened(folder, tmp_path):
    path = save(folder, 100)
    evil = pickle.dumps(Exploding(tmp_path / "trace"))
    planted = ["netd.pt", "optimizer_g.pkl", "checkpoint.pth", "extra.safetensors", "state.json.bak"]
    for name in planted:
        (path / name).write_bytes(evil)
    WATCHING.append(True)
    try:
        loaded, _ = checkpoint.load(path)
        assert checkpoint.find_newest(folder, print) == path
    finally:
        WATCHING.clear()
    assert set(loaded) == {"netg", "optimizer_g"}
    assert {Path(name).name for name in OPENED if Path(name).parent == path} == FILES
    assert not (tmp_path / "trace").exists()
    pickle.loads(evil)  # noqa: S301 - the trap would have worked
    assert (tmp_path / "trace").exists()
