"""A trained generator: loads it from a checkpoint, and draws pictures with it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.errors import UsageError, UserError, os_error_as_user_error, to_stderr
from dcgan_dist.gan.images import to_pixels
from dcgan_dist.gan.networks import NetG
from dcgan_dist.parallel.noise import sample_latents
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.checkpoint_manifest import FORMAT, MANIFEST, STATE, described, sealed

AT_ONCE = 64  # images in one forward pass; they do not depend on each other


def find_checkpoint(source: Path) -> Path:
    """The checkpoint of a run's or a checkpoint's folder. Raises UsageError when it is neither."""
    with os_error_as_user_error("", "cannot be read"):
        found = resume.resolve(source, to_stderr)
    if found is None:
        raise UsageError(f"{source}: neither a run's folder with a checkpoint in it nor a checkpoint's folder")
    return found


def load_generator(path: Path, network: str, device: str) -> tuple[NetG, ModelConfig, int]:
    """G of a checkpoint, in evaluation mode; its configuration; the images that it was trained on.

    `network`: netg or netg_ema; `device`: auto, or one of torch's names.

    Raises UserError for a checkpoint that is damaged or of another version, UsageError for a device that torch lacks.
    """
    tensors, state = checkpoint.load(path, (network,))
    weights = tensors[network]
    try:
        options = {name.partition(".")[::2]: value for name, value in state["config"].items()}
        model = ModelConfig(**{name: value for (group, name), value in options.items() if group == "model"})
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"describes no networks that this version knows ({' '.join(str(error).split())})"
        raise UserError(f"{path / checkpoint.STATE}: {problem}; use the version that wrote it") from error
    netg = NetG(model).to(device=_device(device), dtype=weights["layers.0.weight"].dtype).eval()
    netg.load_state_dict(weights)
    return netg, model, state["images"]


def export(path: Path, folder: Path) -> None:
    """Makes `folder`, a checkpoint of the generator alone, which `dcgan-dist sample` takes: G's moving average of the
    checkpoint `path`, its options, and the data set's fingerprint.

    Raises UserError when the checkpoint is damaged, and OSError.
    """
    state = checkpoint.load_state(path)
    kept = {name: state.get(name) for name in ("images", "data_fingerprint", "data_names", "data_images")}
    kept["config"] = {name: value for name, value in state["config"].items() if name.startswith("model.")}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights, text = folder / f"netg_ema{checkpoint.SUFFIX}", json.dumps(kept, indent=2).encode()
    try:
        os.link(path / weights.name, weights)
    except OSError:  # a file system without hard links
        shutil.copyfile(path / weights.name, weights)
    (folder / STATE).write_bytes(text)
    about = {name: described((folder / name).read_bytes()) for name in (weights.name, STATE)}
    (folder / MANIFEST).write_bytes(sealed({"format": FORMAT, "images": kept["images"], "files": about}))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: torch cannot use it ({str(error).partition(chr(10))[0]})") from error


@torch.no_grad()
def draw(netg: NetG, model: ModelConfig, count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures (n, C, H, W), AT_ONCE at a time. G is in evaluation mode: no picture depends on the others."""
    weight = next(netg.parameters())
    for first in range(0, count, AT_ONCE):
        z = sample_latents(model, seed, first, min(AT_ONCE, count - first), weight)
        yield to_pixels(netg(z), model.output).cpu().numpy()
