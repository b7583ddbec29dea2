"""Every shard that is damaged is found when the run starts, and named in one clear line."""

import os
import tempfile
from pathlib import Path

import pytest
from support.damages import HTML, IMAGES, NOTHING_LEFT, flipped, members, replaced
from support.shards import by_index, encoded, open_corpus, write_ours, write_tar

from dcgan_dist.errors import UserError


def ours(path):
    return write_ours(path, IMAGES, label=lambda number: number)


def others(path):
    rows = [(f"{number:05}", number) for number in range(IMAGES)]
    members = [row for key, n in rows for row in ((f"{key}.jpg", encoded(n, "jpg")), (f"{key}.cls", str(n).encode()))]
    return write_tar(path, members)


# what is left of the bytes of a shard, by the kind of damage
CUTS = {
    "cut inside the first image": lambda c: c[: members(c)[0][1] + 100],
    "cut inside an image": lambda c: c[: members(c)[10][1] + 100],
    "cut inside the padding of an image": lambda c: c[: members(c)[10][2] - 1],
    "cut inside a header": lambda c: c[: members(c)[10][0] + 300],
    "cut between an image and its label": lambda c: c[: members(c)[11][0]],
    "cut between two samples": lambda c: c[: members(c)[10][0]],
    "cut after the last sample": lambda c: c[: members(c)[23][2]],
    "cut after the first header": lambda c: c[:512],
    "only a few bytes": lambda c: c[:40],
}
BROKEN = NOTHING_LEFT | {"the first half lost": lambda c: c[members(c)[10][0] + 100 :]}
IN_THE_MIDDLE = {
    "a flipped bit in a header": lambda c: flipped(c, members(c)[10][0] + 4),
    "a zeroed header": lambda c: replaced(c, members(c)[10][0], bytes(512)),
    "a zeroed stretch": lambda c: replaced(c, members(c)[10][0] - 512, bytes(2048)),
    "a lost block": lambda c: c[: members(c)[10][1]] + c[members(c)[10][1] + 512 :],
    "two tars in one": lambda c: c + c,
}
DAMAGES = CUTS | BROKEN | IN_THE_MIDDLE
CASES = [*((ours, name) for name in CUTS | BROKEN), *((others, name) for name in DAMAGES)]
WORDS = {
    **dict.fromkeys(CUTS, "cut"),
    "empty": "is empty",
    "web page": "an HTML page",
    "long web page": "an HTML page",
    "two tars in one": "several tars in one",
}


def refusal(*patterns):
    with pytest.raises(UserError) as caught:
        open_corpus([str(pattern) for pattern in patterns])
    return str(caught.value)


@pytest.mark.parametrize(("make", "damage"), CASES)
def test_damage_is_found_at_the_start(tmp_path, make, damage):
    good, bad = make(tmp_path / "good.tar"), make(tmp_path / "bad.tar")
    assert open_corpus([str(good), str(bad)]).size == 2 * IMAGES
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    message = refusal(good, bad)
    assert message.startswith(f"{bad}: ")
    assert "\n" not in message
    assert WORDS.get(damage, "") in message


@pytest.mark.parametrize("lost", [1, 511, 512, 1_000, 1_024, 1_025, 1_500])
def test_the_end_cut_from_our_shards_is_noticed_or_harmless(tmp_path, lost):
    """tar's end mark alone may be missing in part: all samples are there."""
    shard = ours(tmp_path / "shard.tar")
    whole = by_index(open_corpus([str(shard)]).index(0))
    shard.write_bytes(shard.read_bytes()[:-lost])
    if lost <= 512:
        assert by_index(open_corpus([str(shard)]).index(0)) == whole
    else:
        assert refusal(shard).startswith(f"{shard}: ")


@pytest.mark.parametrize("damage", ["a flipped bit in a header", "a zeroed header"])
def test_a_header_of_our_shards_is_not_needed(tmp_path, damage):
    """The index knows where everything lies, so that this costs nothing."""
    shard = ours(tmp_path / "shard.tar")
    whole = by_index(open_corpus([str(shard)]).index(0))
    shard.write_bytes(IN_THE_MIDDLE[damage](shard.read_bytes()))
    assert by_index(open_corpus([str(shard)]).index(0)) == whole


def test_a_block_lost_in_the_middle_of_our_shards_is_found(tmp_path):
    shard = ours(tmp_path / "shard.tar")
    shard.write_bytes(IN_THE_MIDDLE["a lost block"](shard.read_bytes()))
    assert refusal(shard).startswith(f"{shard}: ")


def test_a_tar_of_other_things_is_refused(tmp_path):
    shard = write_tar(tmp_path / "texts.tar", [("a.txt", b"text"), ("b.json", b"{}")])
    assert refusal(shard) == (
        f"{shard}: holds no images; skipped: 2 other members (1 .json, 1 .txt), 2 samples without an image"
    )


def test_missing_files_and_folders_are_named(tmp_path):
    good = ours(tmp_path / "good.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "dangling.tar").symlink_to("nowhere")
    assert refusal(good, tmp_path / "none.tar") == f"{tmp_path}/none.tar: no such file"
    assert refusal(good, tmp_path / "dangling.tar") == f"{tmp_path}/dangling.tar: no such file"
    named = f"{tmp_path}/folder.tar: is a folder; name the shards in it, as in '{tmp_path}/folder.tar/*.tar'"
    assert refusal(good, tmp_path / "folder.tar") == named


@pytest.mark.parametrize("make", [ours, others])
def test_a_shard_that_may_not_be_read_is_named(make):
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, where other users may not even look
        Path(folder).chmod(0o755)
        shard = make(Path(folder) / "secret.tar")
        shard.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            assert refusal(shard) == f"{shard}: cannot be read (Permission denied)"
        finally:
            os.seteuid(user)


def test_an_input_output_error_is_one_line(tmp_path, monkeypatch):
    shard = ours(tmp_path / "shard.tar")

    def fails(path, mode):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    assert refusal(shard) == f"{shard}: cannot be read (Input/output error)"


def test_all_bad_shards_are_named_at_once(tmp_path):
    ours(tmp_path / "good.tar")
    (tmp_path / "web.tar").write_bytes(HTML)
    (tmp_path / "empty.tar").touch()
    lines = refusal(tmp_path / "{good,web,none,empty}.tar").splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"{tmp_path}/{name}.tar" for name in ("web", "none", "empty")]
    assert lines[3:] == ["(3 of 4 shards are bad)"]


def test_of_very_many_bad_shards_the_first_are_named(tmp_path):
    lines = refusal(tmp_path / "{000..099}.tar").splitlines()
    assert lines[:-1] == [f"{tmp_path}/{number:03}.tar: no such file" for number in range(20)]
    assert lines[-1] == "(100 of 100 shards are bad)"
