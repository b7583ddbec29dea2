"""Named tensors as the bytes of a safetensors file, and back."""

import json
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dcgan_dist.errors import UserError

# the names of the format, in the order in which the library writes them
DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def serialised(values: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, byte for byte what the library makes of all in one, which takes two more copies."""
    names = sorted(values, key=lambda name: (list(DTYPES).index(values[name].dtype), name))
    header, end = {}, 0
    for name in names:
        value, begin = values[name], end
        end += value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield values[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def parsed(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of the file at `path`. Raises UserError when they are none."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: is no safetensors file, although the manifest names it") from error
