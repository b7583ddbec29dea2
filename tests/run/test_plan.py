import re

import pytest

from dcgan_dist.config import Config
from dcgan_dist.config.checks import ConfigError
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.run.plan import layers_text, split_text


def test_both_networks_are_shown_layer_by_layer():
    config = Config(model=ModelConfig(image_size=48, channels=1, nz=7, ngf=2, ndf=3, output="sigmoid"))
    text = re.sub(r", eps=.*\)", ")", layers_text(config))  # how a norm shows itself changes with torch
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "NetG: 1,614 parameters, input 7 x 1 x 1",
        "8 x 4 x 4 896 ConvTranspose2d(7, 8, kernel_size=(4, 4), stride=(1, 1), bias=False)",
        "8 x 4 x 4 16 GroupedBatchNorm(8)",
        "8 x 4 x 4 0 ReLU(inplace=True)",
        "4 x 8 x 8 512 ConvTranspose2d(8, 4, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), bias=False)",
        "4 x 8 x 8 8 GroupedBatchNorm(4)",
        "4 x 8 x 8 0 ReLU(inplace=True)",
        "2 x 16 x 16 128 ConvTranspose2d(4, 2, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), bias=False)",
        "2 x 16 x 16 4 GroupedBatchNorm(2)",
        "2 x 16 x 16 0 ReLU(inplace=True)",
        "1 x 48 x 48 50 ConvTranspose2d(2, 1, kernel_size=(5, 5), stride=(3, 3), padding=(1, 1), bias=False)",
        "1 x 48 x 48 0 Sigmoid()",
        "NetD: 1,743 parameters, input 1 x 48 x 48",
        "3 x 16 x 16 75 Conv2d(1, 3, kernel_size=(5, 5), stride=(3, 3), padding=(1, 1), bias=False)",
        "3 x 16 x 16 0 LeakyReLU(negative_slope=0.2, inplace=True)",
        "6 x 8 x 8 288 Conv2d(3, 6, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), bias=False)",
        "6 x 8 x 8 12 GroupedBatchNorm(6)",
        "6 x 8 x 8 0 LeakyReLU(negative_slope=0.2, inplace=True)",
        "12 x 4 x 4 1,152 Conv2d(6, 12, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), bias=False)",
        "12 x 4 x 4 24 GroupedBatchNorm(12)",
        "12 x 4 x 4 0 LeakyReLU(negative_slope=0.2, inplace=True)",
        "1 x 1 x 1 192 Conv2d(12, 1, kernel_size=(4, 4), stride=(1, 1), bias=False)",
    ]


def test_the_columns_stand_one_below_the_other():
    rows = [line for line in layers_text(Config()).splitlines() if line.startswith(" ")]
    assert {line.index(line.split("  ")[-1]) for line in rows} == {32}


@pytest.mark.parametrize("d_norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_kind_of_d_is_shown(d_norm, spectral_norm):
    text = layers_text(Config(model=ModelConfig(d_norm=d_norm, spectral_norm=spectral_norm)))
    below = text.partition("NetD")[2]
    assert below.count(", spectral norm") == (5 if spectral_norm else 0)
    assert below.count("GroupNorm(1, ") == (3 if d_norm == "layer" else 0)
    assert "Parametrized" not in text


@pytest.mark.parametrize(
    ("config", "ranks", "text"),
    [
        (
            Config(),
            1,
            "1 rank: global batch 128, 128 images per rank; 2,000,000 images are 15,625 iterations",
        ),
        (
            Config(batch_size=96, accumulate=3, images=1_000),
            4,
            "4 ranks: global batch 96 in 3 micro-batches, 8 images per rank and micro-batch; "
            "1,000 images are 11 iterations",
        ),
    ],
)
def test_the_batch_is_shared_out_in_words(config, ranks, text):
    assert split_text(config, ranks) == text


def test_a_batch_that_the_ranks_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="--batch_size 128 does not divide evenly over 3 ranks"):
        split_text(Config(), 3)
