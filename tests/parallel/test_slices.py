"""Every rank has its own images and noise, and together they are what one process has."""

from itertools import chain, pairwise

import numpy as np
import pytest
import torch
import xxhash
from support.ranks import run_ranks
from support.recording import begin, options

from dcgan_dist.data.order import Order

pytestmark = pytest.mark.dist

BATCH, PARTS, ITERATIONS = 24, 2, 3
EVERYTHING = (
    f"--accumulate {PARTS} --loss.gp_weight 1 --model.d_norm layer --augment color translation cutout --data.hflip"
)
# what an iteration is given -> per micro-batch, one hash for each image
Hashes = dict[str, list[list[int]]]


def hashed(tensor: torch.Tensor | None) -> list[int]:
    assert tensor is not None
    return [xxhash.xxh3_64_intdigest(np.ascontiguousarray(row.numpy()).tobytes()) for row in tensor]


def inputs(given: list[str], world_size: int) -> list[tuple[Hashes, list[int]]]:
    """Of every iteration: the hashes of all that goes into it on this rank, and the numbers of its images."""
    session = begin(given, world_size)
    seen = []
    batches = session.reader.batches(0, session.split)
    for (real, noise), batch in zip(session.inputs(), batches, strict=False):
        found: Hashes = {"real": [hashed(part) for part in real]}
        for name in ("z", "mix", "augment_real", "augment_fake", "augment_g"):
            found[name] = [hashed(getattr(part, name)) for part in noise]
        seen.append((found, batch.rows.samples.tolist()))
        session.state.images += BATCH
        if len(seen) == ITERATIONS:
            return seen
    raise AssertionError("the stream ended")


@pytest.fixture(scope="module")
def worlds(shards, tmp_path_factory):
    """Number of ranks -> what each was given."""
    folder = tmp_path_factory.mktemp("slices")
    return {
        size: run_ranks(size, inputs, options(shards, folder / str(size), EVERYTHING, batch=BATCH), size)
        for size in (1, 2, 3, 4)
    }


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_have_the_batch_of_one_process(worlds, world_size):
    """Micro-batch by micro-batch, in the order of the ranks."""
    (alone,) = worlds[1]
    for iteration in range(ITERATIONS):
        wanted, _ = alone[iteration]
        for name, parts in wanted.items():
            for micro in range(PARTS):
                shares = [rank[iteration][0][name][micro] for rank in worlds[world_size]]
                assert {len(share) for share in shares} == {BATCH // PARTS // world_size}
                assert list(chain.from_iterable(shares)) == parts[micro], name


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_number_is_drawn_twice(worlds, world_size):
    """Over ranks, micro-batches, iterations and purposes."""
    drawn = [
        number
        for rank in worlds[world_size]
        for found, _ in rank
        for name, parts in found.items()
        if name != "real"
        for part in parts
        for number in part
    ]
    assert len(drawn) == 5 * BATCH * ITERATIONS
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_take_slices_of_the_order(worlds, world_size):
    """All images of an epoch are shown once, whatever the ranks."""
    order = Order((23, 17), seed=0)
    each = BATCH // PARTS // world_size
    shown = []
    for iteration in range(ITERATIONS):
        shares = [np.array(rank[iteration][1]).reshape(PARTS, each) for rank in worlds[world_size]]
        batch = np.concatenate(shares, axis=1).flatten()
        assert batch.tolist() == order.samples(iteration * BATCH, BATCH).tolist()
        shown += batch.tolist()
    assert sorted(shown[: order.size]) == list(range(order.size))
    first_batch = [number for rank in worlds[world_size] for part in rank[0][0]["real"] for number in part]
    assert len(set(first_batch)) == BATCH


def test_batches_differ(worlds):
    (alone,) = worlds[1]
    assert all(a["real"] != b["real"] and a["z"] != b["z"] for (a, _), (b, _) in pairwise(alone))
