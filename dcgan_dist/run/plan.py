"""The text of `--dry_run`."""

import torch

from dcgan_dist.config import Config
from dcgan_dist.gan.networks import NetD, NetG, layer_table
from dcgan_dist.text import counted


def layers_text(config: Config) -> str:
    """Both networks, layer by layer: output shape, number of parameters, kind."""
    model = config.model
    lines = []
    with torch.device("meta"):  # needs no memory
        z = torch.zeros(1, model.nz, 1, 1)
        x = torch.zeros(1, model.channels, model.image_size, model.image_size)
        networks = (("NetG", NetG(model), z), ("NetD", NetD(model), x))
    for name, network, example in networks:
        rows, shape = layer_table(network, example), " x ".join(map(str, example.shape[1:]))
        lines.append(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, input {shape}")
        lines += [f"  {shape:>15} {count:>12,}  {description}" for description, shape, count in rows]
    return "\n".join(lines)


def split_text(config: Config, world_size: int) -> str:
    """How the global batch is divided among the ranks."""
    per_rank = config.per_rank(world_size)
    micro = f" in {config.accumulate} micro-batches" if config.accumulate > 1 else ""
    iterations = -(-config.images // config.batch_size)
    return (
        f"{counted(world_size, 'rank')}: global batch {config.batch_size}{micro}, {per_rank} images per "
        f"rank{' and micro-batch' if micro else ''}; {config.images:,} images are {iterations:,} iterations"
    )
