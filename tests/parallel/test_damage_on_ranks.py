"""Damaged shards in real trainings on one and on three ranks: named without a hang, or replaced, counted and told.

Not the full product of damages, moments, policies and ranks. At the start, where the policy does not matter, each
damage meets both kinds of tar, one with three ranks and one with one. At the first touch of an image, each damage that
only this touch can find meets both policies, and the two that differ most in how they are found meet both numbers of
ranks. While a run goes on, all three that can happen to an open file meet both policies, with one rank or with three.
"""

import itertools
import os
import signal
from functools import partial
from unittest import mock

import numpy as np
import pytest
from support.capture import train_and_capture
from support.damages import DAMAGES, IMAGES, NOTHING_LEFT, foreign, members, ours_jpg
from support.launching import deviation, newest_tensors
from support.output import unstamped
from support.ranks import run_ranks
from support.recording import metrics, options
from support.shards import encoded, write_tar

from dcgan_dist.data.order import Order
from dcgan_dist.data.shards.index import ShardWriter, read_index
from dcgan_dist.gan import step as gan_step
from dcgan_dist.run import checkpoint

pytestmark = [pytest.mark.dist, pytest.mark.slow]

BATCH = 12
SUBSTITUTE = "--data.damaged substitute --data.prefetch 1"
LOST = "another rank ended or does not answer ("
REPORTED = " is damaged, and another is used: "


def end_on(world_size, given, act=train_and_capture, *args):
    """Exit code, standard output and standard error of every rank; that all ranks end is a part of each test."""
    return run_ranks(world_size, act, given, *args)


def completed(results):
    """What the main rank printed of a run that came to its end, line by line."""
    assert [(code, err) for code, _, err in results] == [(0, "")] * len(results)
    return unstamped(results[0][1]).splitlines()


def complaints(results):
    """The line that each rank printed of its end, by its number; of those that lost another one, nothing."""
    assert [code for code, _, _ in results] == [1] * len(results)
    found = {}
    for rank, (_, _, err) in enumerate(results):
        assert err.count("\n") == 1, err
        where = f"rank {rank}: " if rank else ""
        if not err.startswith(f"rank {rank}: {LOST}"):
            assert err.startswith(f"{where}error: ")
            found[rank] = err.removeprefix(f"{where}error: ").rstrip()
    return found


def newest(run_dir):
    """Images at the newest checkpoint, which is whole."""
    path = checkpoint.find_newest(run_dir / "checkpoints", lambda line: None)
    assert path is not None
    assert checkpoint.verify(path) is None
    return int(path.name)


def assert_same_networks(ours, theirs):
    assert deviation(newest_tensors(ours), newest_tensors(theirs)) < 1e-9


# ---- at the start

CUTS = ["cut in an image", "cut in a header", "cut after an image", "cut after a sample"]
IN_HEADERS = ["flipped header of an image", "zeroed header"]
AT_THE_START = [
    *itertools.product([ours_jpg], [*CUTS, "empty", "web page", "missing"], [(3, "raise")]),
    *itertools.product([foreign], [*CUTS, *IN_HEADERS, "web page"], [(1, "substitute")]),
    *itertools.product([foreign], [*IN_HEADERS, "missing"], [(3, "substitute")]),
]


def two_shards(folder, make, damage=None):
    """The pattern of a whole shard and a damaged one."""
    folder.mkdir(exist_ok=True)
    good, bad = make(folder / "good.tar"), make(folder / "bad.tar")
    if damage == "missing":
        bad.unlink()
    elif damage:
        bad.write_bytes((DAMAGES | NOTHING_LEFT)[damage](good.read_bytes()))
    return f"{folder}/{{good,bad}}.tar"


@pytest.mark.parametrize(("make", "damage", "how"), AT_THE_START)
def test_structural_damage_ends_all_ranks_before_anything_is_written(tmp_path, make, damage, how):
    """Whatever is to become of damaged images: a part of the data set is not the data set."""
    world_size, policy = how
    pattern = two_shards(tmp_path / "shards", make, damage)
    results = end_on(world_size, options(pattern, tmp_path / "run", f"--data.damaged {policy}"))
    assert [code for code, _, _ in results] == [1] * world_size
    assert results[0][2].startswith(f"error: {tmp_path}/shards/bad.tar: ")
    assert results[0][2].count("\n") == 1
    assert [err for _, _, err in results[1:]] == [""] * (world_size - 1)  # one rank speaks for all
    assert not (tmp_path / "run").exists()


# ---- at the first touch

FLIPPED = "flipped start of an image"
AT_FIRST_TOUCH = [
    (ours_jpg, FLIPPED, 1),
    (ours_jpg, FLIPPED, 3),
    (ours_jpg, "zeroed header", 3),
    (ours_jpg, "flipped header of an image", 1),
    (foreign, FLIPPED, 3),  # without a checksum: found because it does not decode
]
TOUCHED = IMAGES + 5  # number of the damaged image; the order of this seed has it in the second batch
SEED = next(seed for seed in range(1_000) if TOUCHED in Order([IMAGES] * 2, seed).samples(BATCH, BATCH))
SHORT = f"--seed {SEED} --images 60 --checkpoint.every {BATCH}"


@pytest.mark.parametrize(("make", "damage", "world_size"), AT_FIRST_TOUCH)
def test_a_damaged_image_ends_all_ranks_by_its_name(tmp_path, make, damage, world_size):
    pattern = two_shards(tmp_path / "shards", make, damage)
    offset = members((tmp_path / "shards" / "good.tar").read_bytes())[10][1]
    key = "00005" if make is ours_jpg else "train/00005"
    given = options(pattern, tmp_path / "run", SHORT)
    ((rank, line),) = complaints(end_on(world_size, given)).items()
    assert line.startswith(f"{tmp_path}/shards/bad.tar: {key}.jpg at byte {offset}: ")
    place = Order([IMAGES] * 2, SEED).samples(BATCH, BATCH).tolist().index(TOUCHED)
    assert rank == place // (BATCH // world_size)
    assert newest(tmp_path / "run") == BATCH


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    """The run of one rank on whole shards, in the second of which the image after the damaged one stands twice."""
    folder = tmp_path_factory.mktemp("replaced")
    ours_jpg(folder / "good.tar")
    numbers = [6 if number == 5 else number for number in range(IMAGES)]
    write_tar(folder / "bad.tar", [(f"{n:02}.jpg", encoded(number, "jpg")) for n, number in enumerate(numbers)])
    completed(end_on(1, options(f"{folder}/{{good,bad}}.tar", folder / "run", SHORT)))
    return folder / "run"


def hits(lengths, seed, bad, end, begin=0):
    """Positions from `begin` to `end` whose image is damaged."""
    return int(np.isin(Order(lengths, seed).samples(begin, end - begin), bad).sum())


def assert_counted(run_dir, lengths, seed, bad, begin=0):
    """By every report of the attempt that began at `begin`; and there are as many reports as without damage."""
    records = [record for record in metrics(run_dir) if record["images"] > begin]
    wanted = [hits(lengths, seed, bad, int(record["images"]), begin) for record in records]
    assert [record["data/substituted"] for record in records] == wanted
    assert wanted[-1] > 0
    return [int(record["images"]) for record in records]


@pytest.mark.parametrize(("make", "damage", "world_size"), AT_FIRST_TOUCH)
def test_a_substitute_changes_nothing_but_the_image(tmp_path, replaced, make, damage, world_size):
    pattern = two_shards(tmp_path / "shards", make, damage)
    lines = completed(end_on(world_size, options(pattern, tmp_path / "run", f"{SHORT} {SUBSTITUTE}")))
    (told,) = [line for line in lines if REPORTED in line]
    assert told.startswith(f"data: image {TOUCHED}{REPORTED}{tmp_path}/shards/bad.tar: ")
    assert lines[-2].startswith("done: 60 images after ")
    assert newest(tmp_path / "run") == 60
    assert assert_counted(tmp_path / "run", [IMAGES] * 2, SEED, [TOUCHED]) == [24, 48, 60]
    assert_same_networks(tmp_path / "run", replaced)


# ---- while a run goes on

LENGTHS = [96, 96]
LAST_TWO = [190, 191]  # the images that a cut costs; the first of them is the one that a flipped bit does
STEP = 1  # iterations after which something happens; the readers are up to three batches ahead
FROM = (STEP + 4) * BATCH  # no rank has come so far by then
LATE = next(seed for seed in range(10_000) if not np.isin(LAST_TWO, Order(LENGTHS, seed).samples(0, FROM)).any())
LONG = f"--seed {LATE} --images 384 --checkpoint.every 24 --data.prefetch 1"


def write_pictures(path, pictures):
    """A shard of ours with the pictures of these numbers."""
    with ShardWriter(path) as shard:
        for place, number in enumerate(pictures):
            shard.add(f"{place:05}", "ppm", encoded(number))


def long_shards(folder, second=range(96, 192)):
    """The pattern of two larger shards."""
    folder.mkdir(exist_ok=True)
    write_pictures(folder / "0.tar", range(96))
    write_pictures(folder / "1.tar", second)
    return f"{folder}/*.tar"


def while_it_trains(given, deed):
    """The command; `deed`, on the main rank, after STEP iterations, when the readers of this batch are done."""
    calls, update = itertools.count(1), gan_step.update_ema

    def updated(*args):
        update(*args)
        if next(calls) == STEP and os.environ.get("RANK", "0") == "0":
            deed()

    with mock.patch.object(gan_step, "update_ema", updated):
        return train_and_capture(given)


def overwrite(path, place, data):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def deed_of(name, folder):
    """What happens to the second shard, and the numbers of the images that it costs."""
    path = folder / "1.tar"
    index = read_index(path)
    assert index is not None
    start, offset = int(index.start[94]), int(index.offset[94])
    flipped = bytes([path.read_bytes()[offset + 1_000] ^ 8])
    return {
        "a flipped bit": (partial(overwrite, path, offset + 1_000, flipped), LAST_TWO[:1]),
        "a zeroed header": (partial(overwrite, path, start, bytes(512)), LAST_TWO[:1]),
        "a cut": (partial(os.truncate, path, offset + 1_000), LAST_TWO),
    }[name]


DEEDS = ["a flipped bit", "a zeroed header", "a cut"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs of one rank: on whole shards, and on such in which the images after damaged ones stand twice."""
    folder = tmp_path_factory.mktemp("undisturbed")
    # after the last image of a shard comes its first
    contents = {"whole": range(96, 192), 1: [*range(96, 190), 191, 191], 2: [*range(96, 190), 96, 96]}
    for name, second in contents.items():
        pattern = long_shards(folder / f"shards_{name}", second)
        completed(end_on(1, options(pattern, folder / str(name), LONG)))
    return {name: folder / str(name) for name in contents}


@pytest.mark.parametrize(("name", "world_size"), [*zip(DEEDS, (3, 1, 3), strict=True)])
def test_damage_while_a_run_goes_on_ends_it_and_its_checkpoint_goes_on(tmp_path, undisturbed, name, world_size):
    shards = tmp_path / "shards"
    given = options(long_shards(shards), tmp_path / "run", LONG)
    whole = (shards / "1.tar").read_bytes()
    index = read_index(shards / "1.tar")
    assert index is not None
    deed, bad = deed_of(name, shards)
    found = complaints(end_on(world_size, given, while_it_trains, deed))
    first = int(np.flatnonzero(np.isin(Order(LENGTHS, LATE).samples(0, sum(LENGTHS)), bad))[0]) // BATCH * BATCH
    batch = Order(LENGTHS, LATE).samples(first, BATCH)
    shares = np.split(batch, world_size)
    assert found
    for rank, line in found.items():
        named = [number for number in shares[rank] if number in bad]
        places = [f"{number - 96:05}.ppm at byte {index.offset[number - 96]}: " for number in named]
        assert any(line.startswith(f"{shards}/1.tar: {place}") for place in places)
    assert newest(tmp_path / "run") == first // 24 * 24
    (shards / "1.tar").write_bytes(whole)
    completed(end_on(4 - world_size, given))
    assert_same_networks(tmp_path / "run", undisturbed["whole"])


@pytest.mark.parametrize(("name", "world_size"), [*zip(DEEDS, (1, 3, 3), strict=True)])
def test_damage_during_a_run_is_substituted_and_reported_once(tmp_path, undisturbed, name, world_size):
    shards = tmp_path / "shards"
    given = options(long_shards(shards), tmp_path / "run", f"{LONG} {SUBSTITUTE}")
    deed, bad = deed_of(name, shards)
    lines = completed(end_on(world_size, given, while_it_trains, deed))
    told = [line for line in lines if REPORTED in line]
    assert sorted(int(line.split()[2]) for line in told) == bad
    assert newest(tmp_path / "run") == 384
    assert len(assert_counted(tmp_path / "run", LENGTHS, LATE, bad)) == 16
    assert_same_networks(tmp_path / "run", undisturbed[len(bad)])


# ---- killed


def killed(given):
    """The command, until one rank is killed with SIGKILL in the middle of an iteration."""
    calls, update = itertools.count(1), gan_step.update_ema

    def updated(*args):
        if next(calls) == 17 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        update(*args)

    with mock.patch.object(gan_step, "update_ema", updated):
        return train_and_capture(given)


def test_a_killed_run_goes_on_with_the_same_substitutes_on_other_ranks(tmp_path, undisturbed):
    """Damaged before it began; killed after its first substitute, goes on from its checkpoint after one epoch."""
    shards = tmp_path / "shards"
    given = options(long_shards(shards), tmp_path / "run", f"{LONG} {SUBSTITUTE}")
    deed, bad = deed_of("a flipped bit", shards)
    deed()
    with pytest.raises(AssertionError, match="died without a word"):
        end_on(3, given, killed)
    begun = newest(tmp_path / "run")
    assert begun == 192
    assert hits(LENGTHS, LATE, bad, begun) == 1
    lines = completed(end_on(2, given))
    assert len([line for line in lines if REPORTED in line]) == 1
    assert newest(tmp_path / "run") == 384
    assert assert_counted(tmp_path / "run", LENGTHS, LATE, bad, begun) == [*range(216, 408, 24)]
    assert [record["images"] for record in metrics(tmp_path / "run")] == [*range(24, 408, 24)]
    assert_same_networks(tmp_path / "run", undisturbed[1])


def test_wrong_usage_ends_all_ranks_with_exit_code_2(tmp_path):
    pattern = two_shards(tmp_path / "shards", ours_jpg)
    results = end_on(3, options(pattern, tmp_path / "run", "--data.classes 77"))
    assert [code for code, _, _ in results] == [2] * 3
    problem = "error: --data.classes 77: no image has this label; there are 0, 1, 2, 3, 4\n"
    assert [err for _, _, err in results] == [problem, "", ""]
