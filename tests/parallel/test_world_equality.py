"""The same run on any number of ranks: real processes, the real train loop, real shards."""

import pytest
from support.ranks import run_ranks
from support.recording import begin, deviations, metrics, options, record_training

from dcgan_dist.errors import UsageError

pytestmark = pytest.mark.dist

# options, and how many images make a batch of equal parts on 1, 2, 3 and 4 ranks
CASES = {
    "non_saturating": ("", 12),
    "minimax, label smoothing": ("--loss.name minimax --loss.label_smoothing 0.1", 12),
    "hinge, spectral norm": ("--loss.name hinge --model.spectral_norm", 12),
    "least_squares, sigmoid, uniform z": (
        "--loss.name least_squares --model.output sigmoid --model.latent uniform",
        12,
    ),
    "wasserstein, gradient penalty": ("--loss.name wasserstein --loss.gp_weight 10 --model.d_norm layer", 12),
    "R1": ("--loss.r1_gamma 10 --model.d_norm none", 12),
    "R1 and gradient penalty": ("--loss.r1_gamma 1 --loss.gp_weight 1 --model.d_norm layer --accumulate 2", 24),
    "accumulate 2": ("--accumulate 2", 24),
    "accumulate 3": ("--accumulate 3", 36),
    "d_every 2, g_every 3": ("--optimizer.d_every 2 --optimizer.g_every 3", 12),
    "d_every 3, accumulate 2": ("--optimizer.d_every 3 --accumulate 2 --loss.name hinge", 24),
    "augmentation": ("--augment color translation cutout", 12),
    "clipping, mirroring": ("--optimizer.g_clip 0.05 --optimizer.d_clip 0.2 --data.hflip", 12),
    "rates, planar memory": ("--optimizer.warmup_images 60 --optimizer.decay cosine --no_channels_last", 12),
}


def record(shards, folder, world_size, changes="", variables=None, **sizes):
    """Rank 0's record of a training, after seeing that all ranks recorded the same bits."""
    given = options(shards, folder, changes, **sizes)
    results = run_ranks(world_size, record_training, given, world_size, variables=variables)
    assert len({digest for _, digest in results}) == 1
    return results[0][0]


@pytest.mark.parametrize(("changes", "batch"), CASES.values(), ids=CASES)
def test_worlds_are_equal_in_float64(changes, batch, shards, tmp_path):
    """Ten iterations: every gradient, weight, buffer and average, and every number that was logged.

    Four ranks, which are no other case than two and three, meet the first objective only.
    """
    one = record(shards, tmp_path / "1", 1, changes, batch=batch)
    logged = metrics(tmp_path / "1")
    assert len(logged) == 5
    for world_size in (2, 3, 4) if not changes else (2, 3):
        many = record(shards, tmp_path / str(world_size), world_size, changes, batch=batch)
        worst = max((deviation, name) for name, deviation in deviations(many, one).items())
        assert worst[0] < 1e-9, f"{world_size} ranks: {worst}"
        for ours, theirs in zip(metrics(tmp_path / str(world_size)), logged, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def test_first_iterations_are_equal_in_float32(shards, tmp_path):
    one, *others = (record(shards, tmp_path / str(n), n, "--precision fp32", iterations=2) for n in (1, 2, 3, 4))
    for many in others:
        worst = max((deviation, name) for name, deviation in deviations(many, one).items() if "/grad_" in name)
        assert worst[0] < 1e-5, worst


def test_local_statistics_are_another_training(shards, tmp_path):
    """What the synchronisation is for: without it the first gradients already differ, far beyond rounding."""
    one = record(shards, tmp_path / "1", 1, iterations=1)
    results = run_ranks(2, record_training, options(shards, tmp_path / "2", "--sync_batchnorm none", iterations=1), 2)
    found = deviations(results[0][0], one)
    for network in ("d", "g"):
        assert max(deviation for name, deviation in found.items() if f"/grad_{network}/" in name) > 1e-2
    assert max(deviation for name, deviation in found.items() if "running_" in name) > 1e-2
    assert results[0][1] != results[1][1]  # and each rank has running statistics of its own


def test_statistics_of_a_node(shards, tmp_path):
    """Two nodes of two ranks share statistics as two single ranks with twice the images do."""
    given = options(shards, tmp_path / "4", "--sync_batchnorm node")
    nodes = run_ranks(4, record_training, given, 4, variables={"LOCAL_WORLD_SIZE": "2"})
    ranks = run_ranks(2, record_training, options(shards, tmp_path / "2", "--sync_batchnorm none"), 2)
    assert max(deviations(nodes[0][0], ranks[0][0]).values()) < 1e-9
    digests = [digest for _, digest in nodes]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_debugging_torch_finds_nothing(shards, tmp_path):
    """torch then checks that all ranks make the same collectives in the same order, on tensors of the same shapes."""
    one, two = (
        record(shards, tmp_path / level, 2, "--accumulate 2", {"TORCH_DISTRIBUTED_DEBUG": level}, iterations=2)
        for level in ("OFF", "DETAIL")
    )
    assert max(deviations(two, one).values()) < 1e-9


def expect_usage_error(given: list[str], world_size: int) -> str:
    with pytest.raises(UsageError) as caught:
        begin(given, world_size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("--sync_batchnorm torch", "--sync_batchnorm torch: torch.nn.SyncBatchNorm needs GPUs; use global"),
        (
            "--batch_size 13",
            "--batch_size 13 does not divide evenly over 2 ranks x --accumulate 1; the nearest that does is 12",
        ),
        ("--world_size 3", "--world_size 3, but 2 ranks were launched"),
    ],
)
def test_what_this_world_cannot_do_is_reported(changes, words, shards, tmp_path):
    said = run_ranks(2, expect_usage_error, options(shards, tmp_path / "run", changes), 2)
    assert said[0] == said[1]
    assert said[0].startswith(words)
