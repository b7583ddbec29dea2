"""Several computers write a corpus together, to the same bytes as one."""

import json

import pytest
from support.folders import contents, make_pictures

from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing, Part, parse_part
from dcgan_dist.data.writing.writer import Callbacks, merge_shards, write_shards
from dcgan_dist.errors import UsageError, UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """With two files that are no images and three that equal others."""
    folder = make_pictures(tmp_path_factory.mktemp("pictures"), 40)
    (folder / "cat/bad.png").write_bytes(b"<html>")
    (folder / "dog/bad.jpg").write_bytes(b"")
    for number in range(3):
        (folder / f"newt/copy{number}.png").write_bytes((folder / "cat/000.png").read_bytes())
    return folder


def pack(folder, out, part=None, **options):
    packing = Packing(**{"size": 12, "shard_size": 4, "processes": 1, "skip_bad": True, **options})
    return write_shards(find_source(str(folder)), out, packing, part=part)


@pytest.mark.parametrize("options", [{}, {"duplicates": "drop", "shuffle": False}, {"store": "keep", "size": None}])
def test_the_same_files_by_any_number_of_processes_and_parts(pictures, tmp_path, options):
    one = pack(pictures, tmp_path / "one", **options)
    assert pack(pictures, tmp_path / "two", processes=2, **options).processes == 2
    parts = [pack(pictures, tmp_path / "parts", Part(number, 3), **options) for number in (2, 3, 1)]
    assert not any((tmp_path / "parts").glob("*.*[!l]"))  # .partial alone
    merged = merge_shards(tmp_path / "parts", overwrite=False)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")
    assert sum(part.samples for part in parts) == merged.samples == one.samples
    assert sum(len(part.shards) for part in parts) == len(merged.shards) == len(one.shards)
    assert sorted(message for part in parts for message in part.skipped) == sorted(one.skipped)
    assert (merged.skipped, merged.duplicates, merged.plan.dropped) == (one.skipped, one.duplicates, one.plan.dropped)
    assert len(one.skipped) == 2
    assert one.duplicates == 3


def assert_merged_as_packed_at_once(pictures, out, *, overwrite=False, **options):
    merge_shards(out, overwrite=overwrite)
    pack(pictures, out.parent / "one", **options)
    assert contents(out) == contents(out.parent / "one")


def test_more_parts_than_shards(pictures, tmp_path):
    for number in range(1, 15):
        pack(pictures, tmp_path / "parts", Part(number, 14))
    assert_merged_as_packed_at_once(pictures, tmp_path / "parts")


def test_the_number_of_parts_may_change(pictures, tmp_path):
    pack(pictures, tmp_path / "parts", Part(1, 2))
    assert sum(pack(pictures, tmp_path / "parts", Part(number, 3)).written for number in (1, 2, 3)) < 40
    assert_merged_as_packed_at_once(pictures, tmp_path / "parts")


def test_merge_names_the_missing_part(pictures, tmp_path):
    out = tmp_path / "out"
    for number in (1, 3):
        pack(pictures, out, Part(number, 4))
    with pytest.raises(UserError) as refused:
        merge_shards(out, overwrite=False)
    shards = "6 of 12 shards are missing or damaged (1, 3, 5, 7, 9 and 1 more)"
    assert str(refused.value) == f"{out}: {shards}; run part 2/4, 4/4 again, then merge"
    pack(pictures, out, Part(2, 4))
    pack(pictures, out, Part(4, 4))
    damaged = next(out.rglob("0000006.tar"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"1 of 12 shards are missing or damaged \(6\); run part 3/4 again"):
        merge_shards(out, overwrite=False)
    assert not any(out.glob("*.tar"))
    assert pack(pictures, out, Part(3, 4)).written == 4
    assert len(merge_shards(out, overwrite=False).shards) == 12


def test_merge_wants_parts(pictures, tmp_path):
    with pytest.raises(UsageError, match=r"out: holds no unfinished shards; run --part 1/N, 2/N, \.\. first"):
        merge_shards(tmp_path / "out", overwrite=False)
    assert not (tmp_path / "out").exists()
    pack(pictures, tmp_path / "out", Part(1, 1))
    merge_shards(tmp_path / "out", overwrite=False)
    with pytest.raises(UsageError, match="holds no unfinished shards"):
        merge_shards(tmp_path / "out", overwrite=False)


def test_old_shards_are_replaced_only_when_that_is_asked_for(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, shard_size=2)
    old = contents(out)
    with pytest.raises(UsageError, match=r"holds \d+ \.tar files already"):
        pack(pictures, out, Part(1, 2))
    for number in (1, 2):
        pack(pictures, out, Part(number, 2), overwrite=True)
    with pytest.raises(UsageError, match=r"holds \d+ \.tar files already"):
        merge_shards(out, overwrite=False)
    assert {name: data for name, data in contents(out).items() if "/" not in name} == old
    assert_merged_as_packed_at_once(pictures, out, overwrite=True)


def test_a_part_that_fails_leaves_the_others_shards(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, Part(1, 2))
    with pytest.raises(UserError, match="--skip_bad leaves such images out"):
        pack(pictures, out, Part(2, 2), skip_bad=False)
    assert pack(pictures, out, Part(1, 2)).written == 0


def test_a_part_may_run_beside_others_but_not_beside_the_complete_command(pictures, tmp_path):
    out = tmp_path / "out"

    def others(done, total):
        if done == 1:
            pack(pictures, out, Part(2, 2))
            for refused in (lambda: pack(pictures, out), lambda: merge_shards(out, overwrite=False)):
                with pytest.raises(UserError, match="out: another command is writing shards there"):
                    refused()

    packing = Packing(size=12, shard_size=4, processes=1, skip_bad=True)
    write_shards(find_source(str(pictures)), out, packing, Callbacks(packed=others), Part(1, 2))
    assert_merged_as_packed_at_once(pictures, out)


def test_what_merge_finds_damaged_is_one_line(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, Part(1, 1))
    plan = next(out.rglob("plan.json"))
    plan.write_text(json.dumps({"images": 3}))
    with pytest.raises(UserError, match=r"plan\.json: is damaged; run the parts again"):
        merge_shards(out, overwrite=False)


def test_what_a_part_is():
    assert parse_part("2/8") == Part(2, 8)


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/2/3", "1 /2"])
def test_parts_that_are_none(text):
    with pytest.raises(UsageError, match=r"--part .*: write K/N with K from 1 to N, as in --part 2/8"):
        parse_part(text)


def test_a_part_with_other_options_does_not_disturb_one_that_runs(pictures, tmp_path):
    out = tmp_path / "out"

    def others(done, total):
        if done == 9:
            with pytest.raises(UserError, match="out: shards of other images or options are being written there; stop"):
                pack(pictures, out, Part(2, 2), seed=1)

    packing = Packing(size=12, shard_size=4, processes=1, skip_bad=True)
    write_shards(find_source(str(pictures)), out, packing, Callbacks(packed=others), Part(1, 2))
    pack(pictures, out, Part(2, 2))
    assert_merged_as_packed_at_once(pictures, out)


def test_parts_of_a_new_plan_remove_the_old_ones_whichever_begins_first(pictures, tmp_path):
    out = tmp_path / "out"
    pack(pictures, out, Part(1, 2))

    def others(done, total):
        if done == 1:
            pack(pictures, out, Part(1, 2), seed=1)

    packing = Packing(size=12, shard_size=4, processes=1, skip_bad=True, seed=1)
    write_shards(find_source(str(pictures)), out, packing, Callbacks(packed=others), Part(2, 2))
    assert_merged_as_packed_at_once(pictures, out, seed=1)
