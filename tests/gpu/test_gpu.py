"""What a GPU may change: nothing but the speed.

Wherever it can, the same test runs on the CPU too, so that it is itself tested where there is no GPU.
"""

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from support.shards import open_corpus
from support.waiting import LIMIT
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from dcgan_dist import cli
from dcgan_dist.config import Config
from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.data.order import Split
from dcgan_dist.data.reading.decode_pool import DecodePlan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.errors import UsageError
from dcgan_dist.gan.ema import update_ema
from dcgan_dist.gan.images import to_range
from dcgan_dist.gan.layers import GroupedBatchNorm
from dcgan_dist.gan.networks import NetD
from dcgan_dist.gan.step import discriminator_step, generate, generator_step, probe
from dcgan_dist.parallel.batchnorm import SYNCHRONISATIONS
from dcgan_dist.parallel.engine import create
from dcgan_dist.parallel.feed import on_device
from dcgan_dist.parallel.noise import NoiseSource
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.world import World
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.saving import Saver
from dcgan_dist.run.stats import Stats

ROOT = Path(__file__).parents[2]
EVERYWHERE = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SMALL = ["--model.image_size=32", "--model.ngf=8", "--model.ndf=8", "--batch_size=12"]


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Puts PyTorch's switches for the process back."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision, torch.backends.cudnn.benchmark
    yield
    convolutions.fp32_precision, torch.backends.cudnn.benchmark = before


def world_on(device: str, size: int = 1) -> World:
    """A world of one process on either device, beside others in this process, which Accelerate does not allow."""
    accelerator = SimpleNamespace(
        process_index=0,
        num_processes=size,
        is_main_process=True,
        device=torch.device(device),
        backward=lambda loss: loss.backward(),
        no_sync=lambda _: nullcontext(),
        prepare_model=lambda network, device_placement: network,
    )
    return World(accelerator=cast(Any, accelerator))


class Loop:
    """The train loop's iteration, on images that are the same on every device."""

    def __init__(self, options: list[str], device: str) -> None:
        self.config: Config = cli.load([*SMALL, *options])
        self.device = torch.device(device)
        chosen = arithmetic(self.config.precision, self.device)
        self.weights = chosen.weights
        self.state, self.engine = create(self.config, world_on(device), chosen)
        self.stats = Stats(self.device)
        batch, accumulate = self.config.batch_size, self.config.accumulate
        split = Split(batch=batch, micro_batches=accumulate, rank=0, world_size=1)
        self.noise = NoiseSource(self.config, split, self.device, self.weights)

    def inputs(self) -> tuple[list[Tensor], list]:
        size, batch = self.config.model.image_size, self.config.batch_size
        pixels = np.random.default_rng(self.state.images).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
        real = to_range(torch.from_numpy(pixels).to(self.device), None, self.config.model.output, self.weights)
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        real = real.contiguous(memory_format=layout).chunk(self.config.accumulate)
        return list(real), self.noise.at(self.state.images)

    def update(self, real: list[Tensor], noise: list) -> dict[str, Tensor]:
        fake = generate(self.engine, noise, True)
        values = discriminator_step(self.config, self.state, self.engine, real, fake, noise)
        values |= generator_step(self.config, self.state, self.engine, fake, noise)
        update_ema(self.state.ema, self.state.netg, 0.9)
        values |= probe(self.config, self.state, self.engine, real, noise)
        self.stats.add(values)
        self.state.images += self.config.batch_size
        return values

    def iterate(self) -> dict[str, Tensor]:
        return self.update(*self.inputs())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, on the CPU."""
        everything = self.state.tensors()
        return {f"{file}/{name}": t.detach().cpu() for file, values in everything.items() for name, t in values.items()}


def write_shard(path: Path, count: int) -> str:
    """Random pictures of 32 x 32 pixels; returns the path as an option wants it."""
    random = np.random.default_rng(count)
    with ShardWriter(path) as shard:
        for image in range(count):
            shard.add(f"{image:03}", "ppm", b"P6\n32 32\n255\n" + random.bytes(32 * 32 * 3))
    return str(path)


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of `theirs`."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    assert ours.shape == theirs.shape
    norm = theirs.norm()
    return float((ours - theirs).norm() / (norm if norm else 1))


# ---- the step


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--loss.name=wasserstein", "--loss.gp_weight=10", "--model.d_norm=layer", "--optimizer.d_clip=1"],
        ["--loss.r1_gamma=1", "--model.d_norm=none", "--accumulate=2"],
        ["--loss.name=hinge", "--model.spectral_norm", "--augment", "color", "translation", "cutout"],
    ],
    ids=["plain", "gradient_penalty", "r1_accumulated", "spectral_augmented"],
)
def test_float64_training_is_the_same_on_every_device_and_in_every_memory_order(device, options):
    ours = Loop([*options, "--precision=fp64"], device)
    reference = Loop([*options, "--precision=fp64", "--no_channels_last"], "cpu")
    for _ in range(4):
        values, expected = ours.iterate(), reference.iterate()
        assert values.keys() == expected.keys()
        assert max(deviation(values[name], expected[name]) for name in values) < 1e-9
    weights, expected = ours.tensors(), reference.tensors()
    assert weights.keys() == expected.keys()
    deviations = {name: deviation(weights[name], expected[name]) for name in weights}
    assert max(deviations.values()) < 1e-9, max(deviations, key=lambda name: deviations[name])
    moved = Loop([*options, "--precision=fp64"], "cpu").tensors()
    assert deviation(moved["netg/layers.0.weight"], expected["netg/layers.0.weight"]) > 1e-4


@pytest.mark.gpu
def test_the_first_float32_gradients_are_the_cpus():
    """With fp32 asked for by name, convolutions must not round their inputs to TF32: that would show here as 1e-3."""
    ours, reference = Loop(["--precision=fp32"], "cuda"), Loop(["--precision=fp32"], "cpu")
    values, expected = ours.iterate(), reference.iterate()
    assert deviation(values["loss/d"], expected["loss/d"]) < 1e-5
    for (name, parameter), other in zip(
        ours.state.netd.named_parameters(), reference.state.netd.parameters(), strict=True
    ):
        assert parameter.grad is not None
        assert other.grad is not None
        assert deviation(parameter.grad, other.grad) < 1e-4, name


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Whatever makes the host wait for the GPU in here raises."""
    if device == "cpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls this a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_waiting_for_the_gpu_is_noticed():
    number = torch.ones(1, device="cuda")
    with no_waiting("cuda"), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()
    assert number.item() == 1


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize(
    "options",
    [
        ["--precision=fp32"],
        ["--precision=bf16"],
        ["--precision=bf16", "--augment", "color", "translation", "cutout", "--optimizer.g_clip=1"],
        ["--precision=fp32", "--loss.r1_gamma=1", "--model.d_norm=layer", "--accumulate=2"],
    ],
    ids=["fp32", "bf16", "augmented", "penalised"],
)
def test_an_iteration_never_waits_for_the_gpu(device, options):
    loop = Loop(options, device)
    loop.iterate()  # sets up libraries, which may wait
    real, noise = loop.inputs()
    with no_waiting(device):
        loop.update(real, noise)
    assert all(np.isfinite(value) for value in loop.stats.reduce(lambda rows: rows).values())


@pytest.mark.gpu
def test_peak_memory(capsys):
    wide = ["--batch_size=128", "--model.image_size=64", "--model.ngf=64", "--model.ndf=64"]
    peak: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        loop = Loop([f"--precision={precision}", *wide], "cuda")
        loop.iterate()
        torch.cuda.reset_peak_memory_stats()
        loop.iterate()
        peak[precision] = torch.cuda.max_memory_allocated() / 1e9
        del loop
    with capsys.disabled():
        print(f"\npeak memory, 64 px, batch 128: {peak['fp32']:.2f} GB fp32, {peak['bf16']:.2f} GB bf16")
    assert peak["bf16"] < peak["fp32"]


# ---- synchronised BatchNorm


def together(ranks: int, act: Callable[[int, Callable[[Tensor], Tensor]], Any]) -> list[Any]:
    """`act(rank, sum_over_ranks)` of every rank as if they ran side by side, for NCCL allows one rank per GPU only.

    They run one after the other, again and again; each time one sum more is known from the time before.
    """
    known: list[Tensor] = []
    while True:
        sums: list[list[Tensor]] = [[] for _ in range(ranks)]

        def ask(tensor: Tensor, mine: list[Tensor]) -> Tensor:
            mine.append(tensor.clone())
            return known[len(mine) - 1].clone() if len(mine) <= len(known) else tensor

        results = [act(rank, lambda tensor, mine=sums[rank]: ask(tensor, mine)) for rank in range(ranks)]
        if len(known) == len(sums[0]):
            return results
        known.append(torch.stack([mine[len(known)] for mine in sums]).sum(0))


def test_sums_that_depend_on_sums_come_out_as_side_by_side():
    def act(rank, sum_):
        first = sum_(torch.tensor(float(rank + 1)))
        return float(sum_(first * (rank + 1)))

    assert together(3, act) == [36.0] * 3


TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("groups", "ranks"), [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_shared_batchnorm_is_batchnorm_of_the_joined_batch(device, dtype, layout, groups, ranks):
    count, channels, size = 4, 6, 5
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    # the input as the device sees it: rounded to its type; far from 0, where a careless variance would lose its digits
    x = (draw(ranks, groups, count, channels, size, size) + 3).to(dtype)
    dy = draw(*x.shape).to(dtype)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    plain = nn.BatchNorm2d(channels, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(draw(channels).to(kept))
        plain.bias.copy_(draw(channels).to(kept))
    start = copy.deepcopy(plain.state_dict())

    def act(rank: int, sum_over_ranks: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, GroupedBatchNorm]:
        norm = GroupedBatchNorm(channels).to(device, kept)
        norm.load_state_dict(start)
        norm.sum_over_ranks, norm.ranks = sum_over_ranks, ranks
        mine = x[rank].flatten(0, 1).to(device).contiguous(memory_format=layout).requires_grad_()
        y = norm(mine, groups)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=layout)
        y.backward(dy[rank].flatten(0, 1).to(device))
        assert mine.grad is not None
        return y, mine.grad, norm

    results = together(ranks, act)
    joined = x.double().requires_grad_()
    expected = torch.stack([plain(joined[:, g].flatten(0, 1)).unflatten(0, (ranks, count)) for g in range(groups)], 1)
    expected.backward(dy.double())
    assert joined.grad is not None
    for rank, (y, dx, norm) in enumerate(results):
        assert deviation(y.unflatten(0, (groups, count)), expected[rank]) < TOLERANCE[dtype]
        assert deviation(dx.unflatten(0, (groups, count)), joined.grad[rank]) < TOLERANCE[dtype]
        # statistics are kept in float32 at least, whatever the type of the images
        for name in ("running_mean", "running_var"):
            assert deviation(norm.get_buffer(name), plain.get_buffer(name)) < TOLERANCE[kept], name
        assert int(norm.get_buffer("num_batches_tracked")) == groups
    for name in ("weight", "bias"):
        total = sum(norm.get_parameter(name).grad.cpu().double() for _, _, norm in results)
        assert deviation(cast(Tensor, total), cast(Tensor, plain.get_parameter(name).grad)) < TOLERANCE[dtype], name


def test_pytorchs_own_synchronised_batchnorm_is_refused_on_a_cpu():
    netd = NetD(cli.load(SMALL).model)
    with pytest.raises(UsageError, match="--sync_batchnorm torch"):
        SYNCHRONISATIONS["torch"](netd, world_on("cpu", size=2))


@pytest.mark.parametrize("device", EVERYWHERE)
def test_pytorchs_own_synchronised_batchnorm_takes_the_layers_places(device):
    netd = NetD(cli.load(SMALL).model).to(device)
    reference = copy.deepcopy(netd)
    parameters = list(netd.parameters())
    SYNCHRONISATIONS["torch"](netd, world_on("cuda", size=2))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in netd.modules()) == 2
    assert all(one is other for one, other in zip(netd.parameters(), parameters, strict=True))
    x = torch.rand(8, 3, 32, 32, device=device)
    # without a process group it normalises by this process's batch, as ours does
    assert deviation(netd(x, 2), reference(x, 2)) < 1e-5
    ours, theirs = reference.state_dict(), netd.state_dict()
    assert ours.keys() == theirs.keys()
    assert max(deviation(theirs[name], ours[name]) for name in ours) < 1e-5


# ---- arithmetic


@pytest.mark.parametrize(
    ("device", "supported", "name", "reason"),
    [
        ("cpu", True, "fp32", "on CPUs"),
        ("cuda", True, "bf16", "the GPU supports it"),
        ("cuda", False, "fp32", "no bf16"),
    ],
)
def test_auto_reports_what_it_chose_and_why(monkeypatch, device, supported, name, reason):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    chosen = arithmetic("auto", torch.device(device))
    assert chosen.name == name
    assert reason in chosen.reason


@pytest.mark.gpu
def test_auto_asks_the_gpu():
    chosen = arithmetic("auto", torch.device("cuda"))
    assert chosen.name == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32")


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("struck", ["g", "d"])
def test_in_fp16_only_the_network_whose_gradients_overflow_skips_its_update(device, struck):
    loop = Loop(["--precision=fp16"], device)
    # so low that nothing else overflows
    loop.state.scaler_g, loop.state.scaler_d = (GradScaler(device, init_scale=64.0) for _ in range(2))
    loop.iterate()
    network = {"g": loop.state.netg, "d": loop.state.netd}[struck]
    network.requires_grad_(True)  # D is frozen between its updates
    hook = network.get_parameter("layers.0.weight").register_hook(lambda gradient: gradient * torch.inf)
    scales, weights = _scales_and_weights(loop)
    assert scales == {"g": 64.0, "d": 64.0}
    loop.iterate()
    hook.remove()
    struck_scales, struck_weights = _scales_and_weights(loop)
    spared = {"g": "d", "d": "g"}[struck]
    assert struck_scales == {struck: 32.0, spared: 64.0}
    assert torch.equal(struck_weights[struck], weights[struck])
    assert not torch.equal(struck_weights[spared], weights[spared])
    loop.iterate()
    scales, later = _scales_and_weights(loop)
    assert scales == struck_scales
    assert not torch.equal(later[struck], weights[struck])
    assert all(tensor.isfinite().all() for tensor in loop.tensors().values())


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("struck", ["g", "d"])
def test_an_update_with_a_bad_gradient_and_all_after_it_leave_the_network_alone(device, precision, struck):
    """Decided by the device itself, because the host looks later."""
    loop = Loop([f"--precision={precision}"], device)
    loop.iterate()
    network, watch = {"g": (loop.state.netg, loop.state.detector_g), "d": (loop.state.netd, loop.state.detector_d)}[
        struck
    ]
    network.requires_grad_(True)  # D is frozen between its updates
    before = _learnt(loop)
    hook = network.get_parameter("layers.0.weight").register_hook(_spoilt)
    loop.iterate()
    hook.remove()
    loop.iterate()
    after = _learnt(loop)
    spared = {"g": "d", "d": "g"}[struck]
    assert all(torch.equal(after[struck][name], value) for name, value in before[struck].items())
    assert not any(torch.equal(after[spared][name], value) for name, value in before[spared].items())
    fault = watch.look()
    assert fault is not None
    assert (fault.images, fault.in_gradient) == (12, True)
    assert fault.text.startswith("the gradient of layers.0.weight: its norm is inf (1 of ")
    watch.reset()
    loop.iterate()
    assert not any(torch.equal(value, after[struck][name]) for name, value in _learnt(loop)[struck].items())


def _spoilt(gradient: Tensor) -> Tensor:
    spoilt = gradient.clone()
    spoilt[0, 0, 0, 0] = torch.inf
    return spoilt


def _learnt(loop: Loop) -> dict[str, dict[str, Tensor]]:
    """Weights and moments of each network; not what BatchNorm has seen."""
    tensors = {name: tensor.clone() for name, tensor in loop.tensors().items()}
    return {
        short: {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"optimizer_{short}/") or (name.startswith(f"{network}/") and "running" not in name)
            if "num_batches" not in name
        }
        for short, network in (("g", "netg"), ("d", "netd"))
    }


def _scales_and_weights(loop: Loop) -> tuple[dict[str, float], dict[str, Tensor]]:
    state = loop.state
    scales = {"g": state.scaler_g.get_scale(), "d": state.scaler_d.get_scale()}
    weights = {
        name: torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
        for name, network in (("g", state.netg), ("d", state.netd))
    }
    return scales, weights


# ---- the feed


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize("device", EVERYWHERE)
def test_the_feed_delivers_the_readers_batches_bit_by_bit(tmp_path, device, kind):
    """On a GPU that is always behind, so that a slot or a tensor that is used again too early shows."""
    corpus = open_corpus([write_shard(tmp_path / "a.tar", 70), write_shard(tmp_path / "b.tar", 30)])
    split = Split(batch=64, micro_batches=1, rank=0, world_size=1)

    def batches(pinned: bool) -> Any:
        plan = DecodePlan(kind=kind, count=2, prefetch=2, pinned=pinned)
        return IndexedReader(Fetcher(corpus, (32, 3)), seed=1, plan=plan).batches(0, split)

    fed = on_device(batches(pinned=device == "cuda"), torch.device(device))
    burden = torch.randn(2048, 2048, device=device if device == "cuda" else "meta")
    taken = []
    for _, batch in zip(range(200), fed, strict=False):
        for _ in range(8):
            burden = torch.tanh(burden @ burden)
        # clones are made when the GPU gets there, long after the reader has moved on
        taken.append([tensor.clone() for tensor in (batch.images, batch.flips, batch.labels)])
        del batch
    for number, (ours, expected) in enumerate(zip(taken, batches(pinned=False), strict=False)):
        assert ours[0].device.type == device
        for tensor, other in zip(ours, (expected.images, expected.flips, expected.labels), strict=True):
            assert torch.equal(tensor.cpu(), other), number
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert len({tuple(images.flatten()[:99].tolist()) for images, _, _ in taken}) > 50


# ---- the complete trainer


@pytest.mark.parametrize("device", EVERYWHERE)
def test_a_save_holds_the_state_of_its_moment(tmp_path, device):
    """Whatever the loop has queued before, and goes on to queue while a thread writes."""
    saver = Saver(RunFolder(tmp_path), CheckpointConfig(), Lease(tmp_path), print, torch.device(device))
    value = torch.zeros(1000, 1000, device=device)
    for number in range(3):
        for _ in range(100):
            value += 1
        saver.save(number, {"netg": {"weight": value}}, {"images": number})
    for _ in range(100):
        value += 1
    saver.finish()
    for number, path in enumerate(checkpoint.all_checkpoints(tmp_path / "checkpoints")):
        saved = checkpoint.load(path, ["netg"])[0]["netg"]["weight"]
        assert torch.equal(saved, torch.full((1000, 1000), 100.0 * (number + 1)))


@pytest.mark.parametrize("device", EVERYWHERE)
def test_a_run_goes_on_from_its_checkpoint(tmp_path, device):
    """To the bit on a CPU; on a GPU, where sums have no fixed order, the losses agree to 1e-3 for some iterations."""
    common = [
        *SMALL,
        "--data.shards",
        write_shard(tmp_path / "faces.tar", 40),
        "--log.every=12",
        "--trackers=wandb",
        "--log.samples=4",
    ]

    def run(name: str, images: int, precision: str = "fp32") -> list[str]:
        return [*common, f"--run_dir={tmp_path / name}", f"--images={images}", f"--precision={precision}"]

    _train(device, run("straight", 48), run("parts", 24), run("parts", 48), run("auto", 24, "auto"))
    straight, parts, auto = (_metrics(tmp_path / name) for name in ("straight", "parts", "auto"))
    assert [row["images"] for row in parts] == [row["images"] for row in straight] == [12, 24, 36, 48]
    for row, other in zip(straight, parts, strict=True):
        for name in ("loss/d", "loss/g"):
            assert row[name] == pytest.approx(other[name], rel=1e-3) if device == "cuda" else row[name] == other[name]
    assert len(auto) == 2
    assert all(row["time/g"] > 0 and row["time/d"] > 0 for row in auto)
    facts = json.loads((tmp_path / "auto" / "environment.json").read_text())
    assert facts["device"].startswith(device)
    assert facts["precision"] == ("fp32" if device == "cpu" else arithmetic("auto", torch.device("cuda")).name)
    assert (tmp_path / "auto" / "samples" / "000000024.png").stat().st_size > 100


@pytest.mark.parametrize("device", EVERYWHERE)
def test_a_run_goes_back_to_its_checkpoint_and_completes(tmp_path, device):
    """One update at such a learning rate leaves nothing that is a number; each time it goes back, the rate falls."""
    options = [
        *SMALL,
        f"--run_dir={tmp_path / 'run'}",
        "--data.shards",
        write_shard(tmp_path / "faces.tar", 40),
        *("--images=240", "--log.every=12", "--checkpoint.every=24", "--trackers=wandb", "--log.samples=4"),
        *("--divergence.policy=rollback", "--divergence.lr_factor=1e-9", "--optimizer.g_lr=1e30", "--precision=fp32"),
    ]
    _train(device, options)
    rows = _metrics(tmp_path / "run")
    assert rows[-1]["images"] == 240
    assert 1 <= rows[-1]["health/rollbacks"] <= 3
    for path in checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(t.isfinite().all() for values in checkpoint.load(path)[0].values() for t in values.values())


@pytest.mark.gpu
def test_the_doctor_finds_this_machine_fit(tmp_path):
    options = [f"--run_dir={tmp_path / 'run'}", "--wandb.mode=disabled"]
    command = [sys.executable, "-m", "dcgan_dist", "doctor", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.cuda.get_device_name(0) in done.stdout


def _train(device: str, *runs: list[str]) -> None:
    """The trainer with each of these options, one after the other, in one process of its own."""
    code = (
        "import json, sys; from dcgan_dist.train import main; sys.exit(any([main(o) for o in json.loads(sys.argv[1])]))"
    )
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(runs)],
        cwd=ROOT,
        env=os.environ | hidden,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
