"""The command line of `dcgan-dist verify`: which shards it looks at, what it says, and its exit code."""

import json
import re
import sys

import pytest
from support.damages import DAMAGES, foreign, ours_jpg
from support.http_server import HttpServer
from support.manifests import manifest_of
from support.shards import write_ours

from dcgan_dist.commands import progress, verify
from dcgan_dist.data.shards.manifest import manifest_json
from dcgan_dist.errors import UsageError, UserError


def run(capsys, *options):
    code = verify.main([*map(str, options), "--processes", "1"])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def shards(tmp_path):
    """Three shards and their manifest."""
    folder = tmp_path / "shards"
    folder.mkdir()
    paths = [write_ours(folder / f"{n}.tar", 4, "jpg", first=4 * n, label=lambda _: 0) for n in range(3)]
    (folder / "manifest.json").write_bytes(manifest_json(manifest_of(paths)))
    return folder


@pytest.mark.parametrize("names", [[""], ["*.tar"], ["{0..2}.tar"], ["0.tar", "1.tar", "2.tar"], ["manifest.json"]])
def test_all_ways_to_name_shards(shards, capsys, names):
    code, lines = run(capsys, *(f"{shards}/{name}" for name in names))
    assert code == 0
    size = sum(path.stat().st_size for path in shards.glob("*.tar")) / 1e6
    (line,) = lines
    assert re.fullmatch(rf"all intact: 3 shards, 12 samples, {size:.1f} MB \([\d,]+ MB/s\)", line)


def test_a_shard_named_twice_is_looked_at_once(shards, capsys):
    assert run(capsys, shards, shards / "1.tar")[1][0].startswith("all intact: 3 shards")


def test_deep_prints_the_size_of_the_images(shards, capsys):
    assert run(capsys, shards, "--deep")[1][1:] == ["all images are 32x32"]
    (shards / "manifest.json").unlink()
    write_ours(shards / "3.tar", 2, size=16)
    assert run(capsys, shards, "--deep")[1][1:] == ["2 image sizes; 12 images are 32x32"]


def test_every_bad_shard_is_listed(shards, capsys):
    content = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(content[:700] + b"?" + content[701:])
    (shards / "2.tar").unlink()
    write_ours(shards / "stray.tar", 1, "jpg")
    code, lines = run(capsys, shards)
    assert code == 1
    assert lines[:3] == [
        f"{shards}/2.tar: the manifest names this shard; it is not there",
        f"{shards}/stray.tar: the manifest does not name this shard",
        f"{shards}/1.tar: 00004 at byte 512: the bytes of the .jpg are not those that were written (checksum)",
    ]
    assert lines[3].startswith("3 bad shards (3 problems): 3 shards, 9 samples")


def test_a_part_of_the_shards_does_not_miss_the_others(shards, capsys):
    assert run(capsys, shards / "1.tar")[0] == 0
    (shards / "2.tar").unlink()
    code, lines = run(capsys, shards / "1.tar")
    assert (code, lines[0]) == (1, f"{shards}/2.tar: the manifest names this shard; it is not there")


def test_an_older_shard_of_the_same_name_is_found_by_the_manifest(shards, capsys):
    write_ours(shards / "1.tar", 4, "jpg", first=90, label=lambda _: 0)
    code, lines = run(capsys, shards)
    assert code == 1
    assert "manifest" in lines[0]


def test_a_manifest_elsewhere(shards, tmp_path, capsys):
    (shards / "manifest.json").rename(tmp_path / "kept.json")
    write_ours(shards / "1.tar", 4, "jpg", first=90, label=lambda _: 0)
    assert run(capsys, shards)[0] == 0
    assert run(capsys, shards, "--manifest", tmp_path / "kept.json")[0] == 1


def test_a_manifest_that_cannot_be_read_is_an_error(shards):
    (shards / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not a manifest"):
        verify.main([str(shards)])


def test_missing_files_are_problems_and_wrong_patterns_errors(tmp_path, capsys):
    assert run(capsys, tmp_path / "none.tar")[1][0] == f"{tmp_path}/none.tar: no such file"
    with pytest.raises(UsageError, match=f"^{tmp_path}/x\\*: no such files"):
        verify.main([f"{tmp_path}/x*"])
    with pytest.raises(UsageError, match=r"holds no shards \(\.tar\)"):
        verify.main([str(tmp_path)])
    with pytest.raises(UsageError, match="SHARDS is missing"):
        verify.main([])
    with pytest.raises(UsageError, match="--processes -1"):
        verify.main([str(tmp_path), "--processes", "-1"])
    with pytest.raises(UsageError, match="a pipe cannot be checked"):
        verify.main(["pipe:cat x"])


def test_the_lack_of_checksums_of_other_programs_is_reported(tmp_path, capsys):
    path = foreign(tmp_path / "a.tar")
    assert run(capsys, path)[1][1] == (
        "made by other programs, without checksums: 1 shard; only headers were checked; --deep decodes the images"
    )
    assert run(capsys, path, "--deep")[1][1].endswith("; headers and images were checked")


def test_of_very_many_problems_the_first_are_printed_and_all_written(tmp_path, capsys):
    paths = [tmp_path / f"{number:02}.tar" for number in range(verify.PROBLEMS_LISTED + 7)]
    for path in paths:
        path.write_bytes(b"")
    code, lines = run(capsys, tmp_path, "--json", tmp_path / "found.json")
    assert code == 1
    assert lines[: verify.PROBLEMS_LISTED] == [f"{path}: is empty" for path in paths[: verify.PROBLEMS_LISTED]]
    assert lines[verify.PROBLEMS_LISTED] == "and 7 more (--json FILE lists all)"
    found = json.loads((tmp_path / "found.json").read_text())
    assert [problem["shard"] for problem in found["problems"]] == [str(path) for path in paths]
    assert found["problems"][0] == {
        "shard": str(paths[0]),
        "kind": "structure",
        "what": "is empty",
        "key": None,
        "byte": None,
    }


def test_repair_writes_new_shards_and_leaves_the_old(tmp_path, capsys):
    folder, new = tmp_path / "old", tmp_path / "new"
    folder.mkdir()
    good, bad, empty = ours_jpg(folder / "good.tar"), ours_jpg(folder / "bad.tar"), folder / "empty.tar"
    cut = foreign(folder / "cut.tar")
    cut.write_bytes(DAMAGES["cut in an image"](cut.read_bytes()))
    damaged = DAMAGES["lost bytes"](bad.read_bytes())
    bad.write_bytes(damaged)
    empty.touch()
    code, lines = run(capsys, folder, "--repair", new, "--json", tmp_path / "found.json")
    assert code == 1
    assert f"{bad}: 11 samples saved in {new}/bad.tar, 1 lost" in lines
    assert "  lost: 00005" in lines
    assert f"{empty}: there is nothing to save" in lines
    save = f"dcgan-dist shard {cut} OUT --store keep --skip_bad --allow_cut"
    assert f"{cut}: not repaired: it has no intact index; save its good images by {save}" in lines
    assert bad.read_bytes() == damaged
    assert [path.name for path in new.iterdir()] == ["bad.tar"]
    assert run(capsys, new, "--deep")[0] == 0
    repaired = json.loads((tmp_path / "found.json").read_text())["repaired"]
    assert [(shard["name"], shard["kept"], shard["lost"]) for shard in repaired] == [
        (str(bad), 11, ["00005"]),
        (str(cut), 0, []),
        (str(empty), 0, []),
    ]
    with pytest.raises(UsageError, match=r"holds bad\.tar already"):
        verify.main([str(folder), "--repair", str(new)])
    with pytest.raises(UsageError, match=r"holds .*tar already"):
        verify.main([str(good), "--repair", str(folder)])


def test_repair_into_what_is_not_a_folder_is_refused_before_anything_is_read(tmp_path):
    shard = write_ours(tmp_path / "a.tar", 2)
    for name in ("a.tar", "dangling"):
        (tmp_path / "dangling").unlink(missing_ok=True)
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(UsageError, match=rf"^--repair .*{name}: is not a folder; choose another name$"):
            verify.main([str(shard), "--repair", str(tmp_path / name)])


def test_repair_of_two_shards_of_one_name_is_refused(tmp_path):
    for name in "a", "b":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.tar").touch()
    with pytest.raises(UsageError, match=r"2 shards are named x\.tar"):
        verify.main([f"{tmp_path}/a/x.tar", f"{tmp_path}/b/x.tar", "--repair", f"{tmp_path}/new"])


def test_remote_shards_and_their_manifest(shards, capsys):
    files = {path.name: path.read_bytes() for path in shards.iterdir()}
    with HttpServer(files) as server:
        for names in ["manifest.json"], ["{0..2}.tar"]:
            code, lines = run(capsys, *map(server.url, names), "--retries", "0")
            assert (code, lines[0].split(",")[0]) == (0, "all intact: 3 shards")
        server.files["1.tar"] = DAMAGES["flipped first header"](files["1.tar"])
        del server.files["2.tar"]
        code, lines = run(capsys, server.url("manifest.json"), "--retries", "0")
        assert code == 1
        assert lines[0].startswith(f"{server.url('2.tar')}: ")
        header = "the tar header or padding of the .jpg is not what was written"
        assert lines[1] == f"{server.url('1.tar')}: 00004 at byte 4: {header}"


def test_progress_in_plain_lines(shards, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0)
    verify.main([str(shards), "--processes", "1"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(r"verify: [\d.]+[kM]? of [\d.]+[kM]?B, +\S+B/s, \d\d:\d\d to go", line)


def test_a_bar_on_a_terminal(shards, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    verify.main([str(shards), "--processes", "1"])
    assert "verify: 100%" in capsys.readouterr().err.split("\r")[-1]


def test_several_processes(shards, capsys):
    content = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(content[:700] + b"?" + content[701:])
    assert verify.main([str(shards), "--processes", "2", "--deep"]) == 1
    assert capsys.readouterr().out.startswith(f"{shards}/1.tar: 00004 at byte 512: ")
