import pytest
import torch

from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.gan.networks import NetG
from dcgan_dist.parallel.precision import PRECISIONS, arithmetic

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_bf16", "name", "reason"),
    [
        (CPU, True, "fp32", "the reference on CPUs"),
        (GPU, True, "bf16", "the GPU supports it"),
        (GPU, False, "fp32", "the GPU has no bf16"),
    ],
)
def test_auto_chooses_by_the_device_and_gives_the_reason(monkeypatch, device, has_bf16, name, reason):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    chosen = arithmetic(Config().precision, device)
    assert chosen.name == name
    assert chosen.reason.startswith(reason)
    assert (chosen.weights, chosen.scaled) == (torch.float32, False)


@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_asked_for_is_taken_on_any_device(name):
    for device in (CPU, GPU):
        assert arithmetic(name, device) is PRECISIONS[name]
    assert PRECISIONS[name].name == name
    assert PRECISIONS[name].reason.startswith("as asked")


@pytest.mark.parametrize(
    ("name", "weights", "inside", "scaled"),
    [
        ("fp32", torch.float32, torch.float32, False),
        ("bf16", torch.float32, torch.bfloat16, False),
        ("fp16", torch.float32, torch.float16, True),
        ("fp64", torch.float64, torch.float64, False),
    ],
)
def test_networks_run_in_the_precision(name, weights, inside, scaled):
    chosen = PRECISIONS[name]
    assert (chosen.weights, chosen.scaled) == (weights, scaled)
    netg = NetG(ModelConfig(image_size=32, nz=2, ngf=1)).to(weights)
    with chosen.autocast(CPU)():
        out = netg.layers[0](torch.zeros(1, 2, 1, 1, dtype=weights))
        assert not torch.is_autocast_cache_enabled()
    assert out.dtype == inside
    assert torch.is_autocast_cache_enabled()
    assert next(netg.parameters()).dtype == weights
