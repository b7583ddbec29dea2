"""A shard in use: where its images lie, what they are, and one of them put into the batch."""

import numpy as np
import xxhash
from numpy.typing import NDArray

from dcgan_dist.data.images.codecs import decode_into, netpbm_header
from dcgan_dist.data.images.formats import JPEG_SUFFIXES
from dcgan_dist.data.images.jpeg import decode_jpeg, plain_size
from dcgan_dist.data.shards.files import RangedFile, ShardFile
from dcgan_dist.data.shards.index import ShardIndex
from dcgan_dist.errors import UserError

# kinds of images: not touched yet, the second raw by its name and length; at training size: raw, JPEG; all others
UNKNOWN, LIKELY, PIXELS, JPEG, OTHER = range(5)
Bytes = memoryview | bytes


class DamageError(UserError):
    """One image that cannot be used; others of its shard may be intact."""


class OpenShard:
    """The tables are memory views of the index: an item of one costs less than an item of an array.

    Several threads may read at the same time, and two may check the same image.
    """

    def __init__(self, file: ShardFile, index: ShardIndex, shape: tuple[int, int], remote: bool) -> None:
        """`shape`: height (and width), channels of the batch. `remote`: the file is on a server, or a cached copy."""
        self.file, self.index = file, index
        self.ranged = isinstance(file, RangedFile)
        self.remote = remote
        self.used = 0  # in which call of fill
        self.offset, self.length, self.label = index.offset.data, index.length.data, index.label.data
        self._start, self._checksum = index.start.data, index.checksum.data
        self._checked = index.checked
        self._header = netpbm_header(shape[0], *shape)
        raw = [number for number, suffix in enumerate(index.suffixes) if suffix in ("ppm", "pgm")]
        likely = np.isin(index.suffix, raw) & (index.length == len(self._header) + shape[0] ** 2 * shape[1])
        self.kind = bytearray(np.where(likely, LIKELY, UNKNOWN).astype(np.uint8))

    def view(self) -> memoryview | None:
        """All bytes of a mapped file, as it is now: nothing beyond the end of one that was cut may be touched."""
        view = self.file.view
        if view is None:
            return None
        size = self.file.size()
        return view if size >= len(view) else view[:size]

    def span(self, member: int) -> tuple[int, int]:
        """First byte and number of those that are needed: of an image that was touched, itself, else its sample."""
        if self.kind[member] > LIKELY or not self._checked:
            return self.offset[member], self.length[member]
        start = self._start[member]
        return start, self._start[member + 1] - start

    def is_pixels(self, member: int, view: memoryview) -> bool:
        """Whether an image that is LIKELY raw is raw and intact; for one that is not, put() reports what is wrong."""
        begin = self.offset[member]
        if view[begin : begin + len(self._header)] != self._header:
            return False
        if self._checked:
            sample = view[self._start[member] : self._start[member + 1]]
            if xxhash.xxh3_64_intdigest(sample) != self._checksum[member]:
                return False
        self.kind[member] = PIXELS
        return True

    def put(self, member: int, span: tuple[int, int], data: Bytes, out: NDArray[np.uint8]) -> None:
        """Decodes the image in the bytes of a span into `out`, uint8 (H, W, C), C-contiguous. Raises DamageError."""
        first, count = span
        if len(data) < count:
            raise DamageError(f"{self.index.describe(member)}: the file ends early; it was cut after the run began")
        if first != self.offset[member]:  # the complete sample, with its tar headers
            if xxhash.xxh3_64_intdigest(data) != self._checksum[member]:
                what = "its bytes are not those that were written; copy the shard again, or dcgan-dist verify --repair"
                raise DamageError(f"{self.index.describe(member)}: {what}")
            data = data[self.offset[member] - first :][: self.length[member]]
        kind = self.kind[member]
        kind = kind if kind > LIKELY else self._kind(member, data, out)
        if kind == PIXELS:
            out[:] = np.frombuffer(data, dtype=np.uint8, offset=len(self._header)).reshape(out.shape)
        else:
            self._decode(member, kind, data, out)
        self.kind[member] = kind

    def _suffix(self, member: int) -> str:
        return self.index.suffixes[self.index.suffix[member]]

    def _kind(self, member: int, data: Bytes, out: NDArray[np.uint8]) -> int:
        suffix, header = self._suffix(member), self._header
        if suffix in ("ppm", "pgm") and len(data) == len(header) + out.nbytes and data[: len(header)] == header:
            return PIXELS
        return JPEG if suffix in JPEG_SUFFIXES and plain_size(data) == out.shape[:2] else OTHER

    def _decode(self, member: int, kind: int, data: Bytes, out: NDArray[np.uint8]) -> None:
        try:
            if kind == JPEG:
                decode_jpeg(data, out.shape[2], out)
            else:
                decode_into(bytes(data), self._suffix(member), out, self.index.describe(member))
        except ValueError as error:
            raise DamageError(f"{self.index.describe(member)}: a damaged image ({error})") from error
        except UserError as error:
            raise DamageError(str(error)) from error
