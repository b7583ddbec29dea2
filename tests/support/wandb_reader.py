"""Reads a W&B transaction log (`run-*.wandb`), whose reader wandb no longer publishes.

A 7-byte file header (b':W&B', magic 0xBEE1, version 0), then LevelDB log blocks of 32 KiB. Each chunk has a 7-byte
header (masked CRC-32 of type and data, length, type); types 1 to 4 are full, first, middle and last part of a record;
a record is a protobuf `wandb_internal_pb2.Record`.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

RECORD: Any = import_module("wandb.proto.wandb_internal_pb2").Record  # generated code that type checkers do not see
BLOCK, HEAD = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class CorruptLogError(ValueError):
    """The file is not a complete transaction log."""


def records(path: Path) -> Iterator[Any]:
    """Every record of the log; raises CorruptLogError where it is damaged or cut."""
    record = bytearray()
    for kind, body in _chunks(path.read_bytes()):
        if kind in (WHOLE, FIRST):
            record.clear()
        record += body
        if kind in (WHOLE, LAST):
            yield RECORD.FromString(bytes(record))


def history(path: Path) -> list[dict[str, Any]]:
    """Every logged row, nested keys joined by '/'."""
    rows = [record.history.item for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) < HEAD or struct.unpack("<4sHB", data[:HEAD]) != (b":W&B", 0xBEE1, 0):
        raise CorruptLogError("not a W&B transaction log")
    at = HEAD
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:  # too short for a header: the writer pads it
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        body = data[at + HEAD : at + HEAD + length]
        if len(body) < length or checksum not in _checksums(kind, body) or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            raise CorruptLogError(f"damaged at byte {at}")
        yield kind, body
        at += HEAD + length


def _checksums(kind: int, body: bytes) -> tuple[int, int]:
    plain = zlib.crc32(body, zlib.crc32(bytes([kind])))
    masked = (((plain >> 15) | (plain << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return plain, masked
