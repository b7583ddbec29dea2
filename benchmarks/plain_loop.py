"""The loop that most people start from, as a yardstick: the well-known structure of PyTorch's DCGAN example.

D ends in a sigmoid and is trained by BCELoss; D's update makes one pass and one backward for real and one for fake
images, G's update a third, through D, whose gradients are computed too and thrown away; five numbers are fetched from
the device in every iteration; Adam with its defaults, float32, images in NCHW order. The layers are those of our
networks, so that both do the same sums.

    python -m benchmarks.plain_loop --folder IMAGES --progress FILE     trains on a folder of images
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dcgan_dist.gan.networks import DOUBLE, STEM, geometry

NZ = 100


def make_generator(size: int, ngf: int, channels: int = 3) -> nn.Sequential:
    """z (n, NZ, 1, 1) -> images (n, channels, size, size) in [-1, 1]."""
    widths, last = geometry(size)
    layers: list[nn.Module] = []
    before, shape = NZ, STEM
    for width in widths:
        layers += [
            nn.ConvTranspose2d(before, width * ngf, *shape, bias=False),
            nn.BatchNorm2d(width * ngf),
            nn.ReLU(inplace=True),
        ]
        before, shape = width * ngf, DOUBLE
    layers += [nn.ConvTranspose2d(before, channels, *last, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def make_discriminator(size: int, ndf: int, channels: int = 3) -> nn.Sequential:
    """Images -> probabilities (n, 1, 1, 1)."""
    widths, last = geometry(size)
    hidden = [width * ndf for width in reversed(widths)]
    layers: list[nn.Module] = [nn.Conv2d(channels, hidden[0], *last, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for before, width in pairwise(hidden):
        layers += [
            nn.Conv2d(before, width, *DOUBLE, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(hidden[-1], 1, *STEM, bias=False), nn.Sigmoid())


def set_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class PlainLoop:
    """Networks, optimisers and one iteration of the plain loop."""

    def __init__(self, size: int, ngf: int, ndf: int, device: torch.device) -> None:
        self.device = device
        self.netg = make_generator(size, ngf).apply(set_weights).to(device)
        self.netd = make_discriminator(size, ndf).apply(set_weights).to(device)
        self.opt_g = Adam(self.netg.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.opt_d = Adam(self.netd.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.loss = nn.BCELoss()

    def iterate(self, images: Tensor) -> tuple[float, ...]:
        """Updates D, then G, with a float32 batch; returns both losses, D(x), and D(G(z)) before and after."""
        real = images.to(self.device)
        ones, zeros = (torch.full((len(real),), value, device=self.device) for value in (1.0, 0.0))

        self.netd.zero_grad()
        verdict = self.netd(real).view(-1)
        loss_real = self.loss(verdict, ones)
        loss_real.backward()
        d_real = verdict.mean().item()
        fake = self.netg(torch.randn(len(real), NZ, 1, 1, device=self.device))
        verdict = self.netd(fake.detach()).view(-1)
        loss_fake = self.loss(verdict, zeros)
        loss_fake.backward()
        d_fake = verdict.mean().item()
        self.opt_d.step()

        self.netg.zero_grad()
        verdict = self.netd(fake).view(-1)
        loss_g = self.loss(verdict, ones)
        loss_g.backward()
        d_fake_after = verdict.mean().item()
        self.opt_g.step()
        return (loss_real + loss_fake).item(), loss_g.item(), d_real, d_fake, d_fake_after


def folder_batches(folder: Path, size: int, batch: int, workers: int) -> Iterator[Tensor]:
    """Shuffled float32 batches of torchvision's ImageFolder through a DataLoader, epoch after epoch."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    prepare = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    # the example keeps an epoch's last, smaller batch; without it both sides do the same work in every iteration
    loader = torch.utils.data.DataLoader(
        ImageFolder(str(folder), prepare), batch_size=batch, shuffle=True, num_workers=workers, drop_last=True
    )
    for _ in count():
        for images, _ in loader:
            yield images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of folders of images")
    parser.add_argument("--progress", type=Path, required=True, help="file to append a JSON line to, every so often")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--ndf", type=int, default=64)
    parser.add_argument("--images", type=int, default=10_000, help="images to train on")
    parser.add_argument("--every", type=int, default=640, help="images between two lines")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    loop = PlainLoop(args.size, args.ngf, args.ndf, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    seen, begun = 0, time.monotonic()
    for images in folder_batches(args.folder, args.size, args.batch, args.workers):
        numbers = loop.iterate(images)
        seen += len(images)
        if seen // args.every > (seen - len(images)) // args.every:
            line = {"images": seen, "seconds": time.monotonic() - begun, "loss/d": numbers[0], "loss/g": numbers[1]}
            with args.progress.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if seen >= args.images:
            break


if __name__ == "__main__":
    main()
