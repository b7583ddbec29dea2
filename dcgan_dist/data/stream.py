"""The stream reader: webdataset's own pipeline, for sources that cannot be indexed (pipes) and as the reference in tests.

Same batches in shape and type as the indexed reader, and as many; but what a rank sees depends on the number of ranks, an epoch
is a pass over a rank's shards, and a resumed run begins the stream anew.
"""

from collections.abc import Iterator
from itertools import count, islice
from random import Random
from typing import Any

import torch
import webdataset

from dcgan_dist import keyed
from dcgan_dist.data.codecs import decode_into
from dcgan_dist.data.index import IMAGE_SUFFIXES
from dcgan_dist.data.reader import Split
from dcgan_dist.data.ring import Batch, empty_batch, read_ahead
from dcgan_dist.errors import UsageError, UserError

SHUFFLE_BUFFER = 2_000  # samples


class StreamReader:
    """Reads tars from the first byte to the last with webdataset, shards and samples shuffled by the seed."""

    exact = False

    def __init__(self, urls: list[str], *, size: int, channels: int, seed: int, prefetch: int, pinned: bool) -> None:
        remote = [url for url in urls if "://" in url]
        if remote:
            raise UsageError(f"--data.shards {remote[0]}: not a file; stream it with 'pipe:COMMAND' and --data.allow_pipe")
        self._urls, self._seed = urls, seed
        self._shape = (size, size, channels)
        self._prefetch, self._pinned = prefetch, pinned

    def batches(self, position: int, split: Split) -> Iterator[Batch]:
        """This rank's batches without end; `position` chooses the shuffle and the flips, not a place in the stream."""
        count = split.per_rank_micro * split.micro_batches
        samples = self._samples(position, split)
        positions = iter(range(position, 2**62, split.batch))
        slots = [empty_batch(count, *self._shape[1:], self._pinned) for _ in range(self._prefetch + 2)]

        def fill(batch: Batch) -> None:
            pixels = batch.pixels
            flip_key, first = keyed.key(self._seed, "flip"), next(positions) + split.rank * count
            batch.flips[:] = torch.from_numpy(keyed.words(flip_key, first, count) % 2 == 1)
            for row, (suffix, data, label, where) in enumerate(islice(samples, count)):
                decode_into(data, suffix, pixels[row], where)
                batch.labels[row] = label

        yield from read_ahead(fill, slots)

    def _samples(self, position: int, split: Split) -> Iterator[tuple[str, bytes, int, str]]:
        """Suffix, bytes, label and name of one image after the other, epoch after epoch."""
        divided = len(self._urls) >= split.world_size
        for epoch in count():
            random = Random(f"{self._seed}/{position}/{epoch}")
            urls = random.sample(self._urls, len(self._urls))
            if divided:
                urls = urls[split.rank :: split.world_size]
            images = self._epoch(urls, random)
            # with fewer shards than ranks every rank reads all of them and keeps its share
            yield from images if divided else islice(images, split.rank, None, split.world_size)

    def _epoch(self, urls: list[str], random: Random) -> Iterator[tuple[str, bytes, int, str]]:
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(urls),
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(SHUFFLE_BUFFER, rng=random),
        )
        found = False
        try:
            for sample in pipeline:
                image = _image(sample)
                if image is not None:
                    found = True
                    yield image
        except (OSError, ValueError, webdataset.tariterators.tarfile.TarError) as error:
            raise UserError(f"--data.shards {', '.join(urls[:3])}: {error}") from error
        if not found:
            raise UserError(f"--data.shards {', '.join(urls[:3])}: hold no images")


def _image(sample: dict[str, Any]) -> tuple[str, bytes, int, str] | None:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None:
        return None
    label = sample.get("cls", b"").strip()
    where = f"{sample['__url__']}: {sample['__key__']}.{suffix}"
    return suffix, sample[suffix], int(label) if label.isdigit() else -1, where
