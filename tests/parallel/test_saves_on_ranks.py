"""Checkpoints on two real ranks: what the main rank finds on its disk is what both of them do."""

import os
from pathlib import Path

import pytest
import xxhash
from safetensors.torch import load_file
from support.disk import no_file_larger_than
from support.ranks import run_ranks
from support.recording import begin, options

from dcgan_dist.run import checkpoint
from dcgan_dist.train import main

pytestmark = pytest.mark.dist

RANKS, TWICE = 2, "--world_size 2 --checkpoint.every 12 --images 24"


@pytest.fixture(scope="module")
def saved(shards, tmp_path_factory):
    """A run of two ranks with checkpoints at 12 and 24 images."""
    run = tmp_path_factory.mktemp("saved") / "run"
    assert run_ranks(RANKS, main, options(shards, run, TWICE)) == [0, 0]
    return run


@pytest.fixture
def run(saved, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in saved.rglob("*"):
        target = copy / path.relative_to(saved)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    return copy


def damage(path: Path) -> None:
    data = bytearray((path / "netd.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "netd.safetensors").write_bytes(data)


def start(given: list[str]) -> tuple[int, str]:
    """Images seen where this rank goes on, and a digest of its networks and optimisers."""
    session = begin(given, RANKS)
    digest = xxhash.xxh3_64()
    for file, part in sorted(session.state.tensors().items()):
        for name, value in sorted(part.items()):
            digest.update(f"{file}/{name}".encode() + value.contiguous().numpy().tobytes())
    session.abandon(Exception("the test ends"))
    return session.state.images, digest.hexdigest()


def test_a_damaged_newest_one_is_passed_over_by_all_ranks(run, shards, saved):
    given = options(shards, run, TWICE)
    (whole, same) = run_ranks(RANKS, start, given)
    assert whole == same
    assert whole[0] == 24
    damage(run / "checkpoints" / "000000024")
    assert load_file(run / "checkpoints" / "000000024" / "netd.safetensors")  # of itself the library notices nothing
    (first, second) = run_ranks(RANKS, start, given)
    assert first == second
    assert first[0] == 12
    assert first[1] != whole[1]
    assert run_ranks(RANKS, main, given) == [0, 0]
    again, straight = (root / "checkpoints" / "000000024" for root in (run, saved))
    for name in ("netg.safetensors", "netd.safetensors", "optimizer_g.safetensors", "optimizer_d.safetensors"):
        assert (again / name).read_bytes() == (straight / name).read_bytes()


def told(given: list[str], limit: int | None = None) -> tuple[int, str]:
    """Exit code and standard error of the command, with a disk of the main rank that takes no file beyond `limit`."""
    errors = Path(given[given.index("--run_dir") + 1]).with_name(f"errors{os.environ['RANK']}")
    before = os.dup(2)
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        if limit and os.environ["RANK"] == "0":
            with no_file_larger_than(limit):
                return main(given), errors.read_text()
        return main(given), errors.read_text()
    finally:
        os.dup2(before, 2)


def test_no_rank_restarts_at_0_when_all_are_damaged(run, shards):
    for name in ("000000012", "000000024"):
        damage(run / "checkpoints" / name)
    (main_code, text), (other_code, other_text) = run_ranks(RANKS, told, options(shards, run, TWICE))
    assert (main_code, other_code, other_text) == (1, 1, "")
    assert text == (
        f"error: {run / 'checkpoints'}: none of the 2 checkpoints is intact; restore one, or start again in another "
        "--run_dir\n"
    )
    assert [path.name for path in checkpoint.all_checkpoints(run / "checkpoints")] == ["000000012", "000000024"]


def test_a_save_that_fails_in_the_thread_ends_both_ranks(run, shards):
    newest = run / "checkpoints" / "000000024"
    limit = max(path.stat().st_size for path in newest.iterdir()) - 1
    given = options(shards, run, "--world_size 2 --checkpoint.every 12 --log.every 12 --checkpoint.most_failures 1")
    (main_code, text), (other_code, other_text) = run_ranks(RANKS, told, given, limit)
    assert (main_code, other_code, other_text) == (1, 1, "")
    assert text.startswith(f"error: {run / 'checkpoints' / '000000036'}: the checkpoint could not be saved (File too")
    assert text.count("\n") == 1
    assert checkpoint.verify(newest) is None
    assert not (run / "DONE").exists()
