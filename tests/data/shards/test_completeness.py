"""Every command reports a missing shard that manifest.json names; messages name only what was checked."""

import json
import shutil

import pytest
from support.manifests import manifest_of
from support.s3 import s3_server
from support.shards import encoded, write_ours, write_tar

from dcgan_dist.__main__ import main
from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig, ModelConfig
from dcgan_dist.data.checking.checklist import make_checklist
from dcgan_dist.data.corpus import expand_shards
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.remote.client import Remote
from dcgan_dist.data.shards.completeness import compare_with_manifests
from dcgan_dist.data.shards.manifest import NAME, manifest_json
from dcgan_dist.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with four shards and their manifest in `set`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "set"
    place.mkdir()
    shards = [write_ours(place / f"shard-{n}.tar", 3, "jpg", first=3 * n, label=lambda _: 0) for n in range(4)]
    (place / NAME).write_bytes(manifest_json(manifest_of(shards)))
    return place


def configured(*patterns, **options):
    data = DataConfig(shards=tuple(map(str, patterns)), **options)
    return Config(model=ModelConfig(image_size=32), data=data)


SHARD = ["shard", "--size", "32", "--processes", "1"]
PATTERNS = [
    "set", "set/", "./set", "{set,other}", "[so]et*", "~/set", "~/set/*.tar", "set/*.tar", "./set/shard-[0-9].tar",
    "se?/*.tar", "{set,other}/*.tar", "**/shard-*.tar", "set/{shard-0,shard-[1-9]}.tar",
]  # fmt: skip


@pytest.mark.parametrize("reader", ["indexed", "stream"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_training_misses_a_shard_that_a_glob_no_longer_finds(folder, pattern, reader, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder.parent / "other").mkdir()
    write_ours(folder.parent / "other" / "x.tar", 3)
    open_data(configured(pattern, reader=reader), lambda _: None)
    (folder / "shard-1.tar").unlink()
    with pytest.raises(UserError, match=r"set/manifest\.json names shard-1\.tar, not found there: restore"):
        open_data(configured(pattern, reader=reader), lambda _: None)


def test_a_folder_with_signs_of_a_glob_in_its_name_and_one_that_has_lost_all_its_shards(folder):
    strange, empty = folder.rename("we[1]rd"), folder.parent / "zet"
    shutil.copytree(strange, empty)
    (strange / "shard-1.tar").unlink()
    with pytest.raises(UserError, match=r"we\[1\]rd/manifest\.json names shard-1\.tar, not found there"):
        open_data(configured("we[1]rd"), lambda _: None)
    for shard in empty.glob("*.tar"):
        shard.unlink()
    write_ours(folder.parent / "zat.tar", 1)
    with pytest.raises(UserError, match=r"zet/manifest\.json names shard-0\.tar, shard-1\.tar, shard-2\.tar, shard-3"):
        open_data(configured("*/*.tar"), lambda _: None)


def test_a_long_list_in_braces_is_no_path(folder):
    names = ",".join(f"shard-{n % 4}.tar" if n < 4 else f"none-{n:030}.tar" for n in range(30))
    with pytest.raises(UserError, match=r"none-0+4\.tar: no such file"):
        open_data(configured(f"set/{{{names}}}"), lambda _: None)


@pytest.mark.parametrize("command", [[*SHARD, "set/*.tar", "out"], [*SHARD, "set", "out"], ["verify", "set"]])
def test_other_commands_miss_it_too(folder, capsys, command):
    (folder / "shard-1.tar").unlink()
    assert main(command) == 1
    output = capsys.readouterr()
    assert "shard-1.tar" in output.out + output.err
    assert not (folder.parent / "out").exists()


def test_inspect_names_it_beside_what_is_there(folder, capsys):
    (folder / "shard-1.tar").unlink()
    assert main(["inspect", "set", "--count", "0"]) == 0
    assert "shards:   set/manifest.json names shard-1.tar, not found there\n" in capsys.readouterr().out


def test_shards_of_a_bucket_are_missed(folder, monkeypatch):
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "shard-1.tar"}
    with s3_server({f"faces/{name}": data for name, data in files.items()}):
        pattern = "s3://shards/faces/*.tar"
        remote = Remote(timeout=27)  # a process keeps its connections by their timeout, and with them the server
        names = expand_shards([pattern], remote)
        assert len(names) == 3
        found = compare_with_manifests([pattern], names, remote)
        assert found.missing == ("s3://shards/faces/manifest.json names shard-1.tar, not found there",)
        gone = "s3://shards/faces/shard-1.tar"
        asked = {"faces": [gone], "faces/": [gone], "faces/*.tar": [gone], "faces/shard-{0,2}.tar": []}
        for pattern, absent in asked.items():
            problems = make_checklist([f"s3://shards/{pattern}"], None, remote, deep=False).problems
            assert [problem.shard for problem in problems] == absent


def lines_of(*patterns, **options):
    lines = []
    open_data(configured(*patterns, **options), lines.append)
    return lines


def test_a_part_of_a_set_is_reported(folder):
    """What was asked for one by one, or by a pattern that leaves the missing shard out, is used and reported."""
    (folder / "shard-3.tar").unlink()
    for patterns in (["set/shard-{0..1}.tar"], ["set/shard-[01].tar"], ["set/shard-0.tar", "set/shard-1.tar"]):
        assert lines_of(*patterns)[0] == "data: 2 of the 4 shards that set/manifest.json names are used"


def test_a_shard_that_is_named_and_not_there_is_not_taken_for_one_of_another_set(folder):
    lines = []
    with pytest.raises(UserError, match=r"set/shard-7\.tar: no such file"):
        open_data(configured("set/shard-{0..3}.tar", "set/shard-7.tar"), lines.append)
    assert lines == []


def test_shards_that_the_manifest_does_not_name_are_reported(folder):
    write_ours(folder / "left.tar", 3, "jpg")
    expected = "data: set/manifest.json does not name left.tar: of another set, or left from an earlier one?"
    assert lines_of("set/*.tar")[0] == expected


def test_a_shard_that_was_replaced_by_another_is_reported(folder):
    write_ours(folder / "shard-2.tar", 2, "jpg")
    assert lines_of("set/*.tar")[1] == (
        "data: WARNING: shard-2.tar: not what manifest.json describes; write the set again, or remove the manifest"
    )


@pytest.mark.parametrize("copy", [shutil.copy, lambda shard, copy: copy.symlink_to(shard)])
def test_a_shard_under_two_names_is_reported(folder, copy):
    copy((folder / "shard-1.tar").resolve(), folder / "copied.tar")
    assert "data: WARNING: set/copied.tar and set/shard-1.tar hold the same images, so each is used twice; " in (
        "\n".join(lines_of("set/*.tar"))
    )
    (folder / "copied.tar").unlink()
    assert "WARNING" not in "\n".join(lines_of("set/*.tar"))


def test_a_manifest_of_another_program_is_no_obstacle(folder, capsys):
    (folder / NAME).write_text('{"name": "an app"}')
    assert "set/manifest.json: is not a manifest of shards" in lines_of("set/*.tar")[0]
    assert main(["inspect", "set", "--count", "0"]) == 0
    assert "is not a manifest of shards" in capsys.readouterr().out


def test_a_manifest_with_odd_values_is_no_obstacle(folder):
    odd = json.loads((folder / NAME).read_text()) | {"stored_sizes": {"32x32": "12"}}
    (folder / NAME).write_text(json.dumps(odd))
    assert "contradicts itself (stored_sizes)" in lines_of("set/*.tar")[0]


CHECKED = "all indexes are intact, and each image is checked when it is first read"
HEADERS = "made by other programs, without checksums: only their tar headers were checked"


def test_the_message_names_only_what_was_checked(folder, tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", encoded(1, "jpg"))])
    assert lines_of("set/*.tar")[0] == f"data: 12 images in 4 shards; {CHECKED}"
    assert lines_of("a.tar", "b.tar") == [f"data: 2 images in 2 shards; {HEADERS}"]
    assert lines_of("a.tar", "set/*.tar")[0] == f"data: 13 images in 5 shards; 1 of them {HEADERS}"


def test_an_empty_image_file_is_found_before_training(folder, tmp_path, capsys):
    """Its size stands in the header that was read."""
    images = [(f"{n}.jpg", encoded(n, "jpg") if n % 2 else b"") for n in range(4)]
    write_tar(tmp_path / "x.tar", images)
    empty = r"x\.tar: 0\.jpg at byte 512 is an empty file \(2 such images in this shard\)"
    with pytest.raises(UserError, match=f"^{empty}; leave such images out"):
        lines_of("x.tar")
    assert lines_of("x.tar", damaged="substitute")[1] == (
        "data: WARNING: x.tar: 0.jpg at byte 512 is an empty file (2 such images in this shard); other images of the "
        "same shard take their places"
    )
    assert main(["verify", "x.tar"]) == 1
    assert capsys.readouterr().out.count("is an empty file") == 2
