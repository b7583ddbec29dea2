"""Shards made of shards: a bit that flipped in the source never becomes an image with a right checksum."""

import gzip
import re
from contextlib import contextmanager

import pytest
from support.damages import IMAGES, flipped, members, ours_ppm
from support.http_server import HttpServer
from support.shards import by_index, encoded, write_ours

from dcgan_dist.data.shards.index import read_index
from dcgan_dist.data.sources import find_source
from dcgan_dist.data.writing.packing import Packing
from dcgan_dist.data.writing.writer import write_shards
from dcgan_dist.errors import UserError

# members 10 and 11 are the image and the label of sample 5, and this is what a bit can flip in
PLACES = {
    "pixels": lambda m: m[10][1] + 1_000,
    "image's header": lambda m: m[10][0] + 4,
    "image's padding": lambda m: m[10][2] - 1,
    "label": lambda m: m[11][1],
    "label's header": lambda m: m[11][0] + 130,
    "label's padding": lambda m: m[11][1] + 100,
}
WRONG = r"a\.tar(\.gz)?: 00005\.ppm at byte \d+: its bytes are not those that were written; "


@contextmanager
def source_of(way, folder, content):
    """What is given to dcgan-dist shard for a shard of this content."""
    name, data = ("a.tar.gz", gzip.compress(content)) if way == "packed" else ("a.tar", content)
    (folder / name).write_bytes(data)
    with HttpServer({name: data}) as server:
        yield find_source(server.url(name) if way == "remote" else str(folder / name))


def pack(source, out, **options):
    sized = {} if options["store"] == "keep" else {"size": 32}
    return write_shards(source, out, Packing(**{"processes": 1, "shuffle": False, **sized, **options}))


def packed(out):
    """Image and label of all samples in some shards."""
    indexes = [read_index(path) for path in sorted(out.glob("*.tar"))]
    return [(data, label) for index in indexes for _, _, data, label in by_index(index)]


@pytest.fixture
def whole(tmp_path):
    return ours_ppm(tmp_path / "whole.tar").read_bytes()


WHOLE = [(encoded(number, "ppm"), number % 5) for number in range(IMAGES)]


@pytest.mark.parametrize("way", ["local", "packed", "remote"])
@pytest.mark.parametrize("store", ["keep", "ppm"])
@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_is_not_copied(tmp_path, whole, way, store, place):
    content = flipped(whole, PLACES[place](members(whole)))
    with source_of(way, tmp_path, content) as source:
        with pytest.raises(UserError, match=f"{WRONG}[^\n]*; --skip_bad leaves such images out$"):
            pack(source, tmp_path / "none", store=store)
        assert list((tmp_path / "none").glob("*.tar")) == []
        summary = pack(source, tmp_path / "out", store=store, skip_bad=True)
    assert (summary.samples, len(summary.skipped)) == (IMAGES - 1, 1)
    assert re.search(WRONG, (tmp_path / "out" / "bad.txt").read_text())
    assert packed(tmp_path / "out") == WHOLE[:5] + WHOLE[6:]


@pytest.mark.parametrize("way", ["local", "packed", "remote"])
def test_intact_shards_give_the_same_shard_again(tmp_path, whole, way):
    with source_of(way, tmp_path, whole) as source:
        pack(source, tmp_path / "out", store="keep")
    assert packed(tmp_path / "out") == WHOLE


@pytest.mark.dist
def test_by_several_processes_and_among_duplicates(tmp_path, whole):
    (tmp_path / "a.tar").write_bytes(flipped(whole, PLACES["label"](members(whole))))
    write_ours(tmp_path / "b.tar", 3, "ppm")  # the first three of the other again
    options = {"store": "keep", "skip_bad": True, "duplicates": "drop", "shard_size": 4, "processes": 2}
    summary = pack(find_source(f"{tmp_path}/?.tar"), tmp_path / "out", **options)
    assert (summary.processes, summary.samples, summary.duplicates, len(summary.skipped)) == (2, IMAGES - 1, 3, 1)
    assert packed(tmp_path / "out") == WHOLE[:5] + WHOLE[6:]


def test_a_copy_that_is_damaged_is_made_again_when_it_was_removed(tmp_path, whole):
    out = tmp_path / "out"
    with source_of("remote", tmp_path, whole) as source:
        source.prepared(out / ".partial" / "copies", print)
        (copy,) = out.glob(".partial/copies/*.tar")
        copy.write_bytes(flipped(whole, PLACES["pixels"](members(whole))))
        wanted = f"{WRONG}remove {copy}, its copy, and retry, or dcgan-dist verify --repair; --skip_bad"
        with pytest.raises(UserError, match=wanted):
            pack(source, out, store="keep")
        copy.unlink()
        pack(source, out, store="keep")
    assert packed(out) == WHOLE


def test_what_is_known_of_a_sample_takes_little_memory(tmp_path):
    names = [item.name for item in find_source(str(write_ours(tmp_path / "a.tar", 200))).items().images]
    assert max(map(len, names)) < len("00000.ppm#0,1000000,3085") + len(",512,4096,") + 16 + 1
