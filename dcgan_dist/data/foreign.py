"""Tars made by others (webdataset's ShardWriter, `tar`, img2dataset): indexed once by walking their headers.

They are used as they are, grouped into samples as webdataset does; samples.py says what of them is an image and what a
label. A label may stand apart from its image, as in a tar of all images and then all labels.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash

from dcgan_dist.data.formats import ending_of
from dcgan_dist.data.index import (
    BLOCK,
    NO_LABEL,
    NO_SUMS,
    SKIPPED,
    ShardIndex,
    arrays_to_bytes,
    index_from_bytes,
    join_keys,
)
from dcgan_dist.data.labels import numbered, read_label
from dcgan_dist.data.notes import Notes
from dcgan_dist.data.samples import (
    BAD,
    KEY_AND_SUFFIX,
    LINKS,
    WEBDATASETS_OWN,
    Choice,
    Chooser,
    count_passed,
    split_name,
)
from dcgan_dist.data.storage import cache_folder, write_atomically
from dcgan_dist.data.tarfiles import CutError, compression, tar_members
from dcgan_dist.errors import UserError

CHECKSUM_BYTES = 8  # in front of a kept index
SAMPLED_IMAGES, SAMPLED_BYTES = 256, 4096  # of each, that tell one tar from another with the same names and lengths
CUT = "cut"  # stands for a missing end mark among the members that are not used
KEPT = "dcgan_dist/7"  # goes up with the arrays and with what is taken for a sample
MOST_LABEL_BYTES = 2**20
OR_SKIP = ", or leave such members out (shard --skip_bad, --data.damaged substitute)"
EMPTY_BYTES = 20 * BLOCK  # of a tar without members
DEFAULT = Choice()
NONE = "\0"  # the label of an image that has one which cannot be used

Members = dict[str, tarfile.TarInfo]


def foreign_index(path: Path, choice: Choice = DEFAULT) -> ShardIndex:
    """The index of a tar that carries none, from the cache if this very file (size, times) was walked before.

    Raises UserError when the file is no tar, is cut or damaged, or holds no images.
    """
    stat = path.stat()
    # the time of change too: `cp -p` of another tar keeps the time of modification
    identity = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{stat.st_ctime_ns}"
    identity = f"{identity}\n{choice}"
    index = kept_index(identity, str(path))
    if index is None:
        index = walk(path, choice)
        keep_index(identity, index)
    return index


def kept_index(identity: str, name: str) -> ShardIndex | None:
    """The index that was kept of a file with this identity, for a shard of this name; None: there is none."""
    with suppress(OSError):
        kept = _kept(identity).read_bytes()
        if kept[:CHECKSUM_BYTES] == xxhash.xxh3_64_digest(kept[CHECKSUM_BYTES:]):
            return index_from_bytes(name, kept[CHECKSUM_BYTES:])
    return None


def keep_index(identity: str, index: ShardIndex) -> None:
    """Keeps an index; a full or read-only home costs the next start a walk, and nothing else."""
    blob = arrays_to_bytes(index)
    with suppress(UserError):
        write_atomically(_kept(identity), xxhash.xxh3_64_digest(blob) + blob)


def _kept(identity: str) -> Path:
    return cache_folder() / "indexes" / f"{xxhash.xxh3_128_hexdigest(os.fsencode(f'{KEPT}/{identity}'))}.index"


def walk(path: Path, choice: Choice = DEFAULT) -> ShardIndex:
    """Builds the index of a tar from its headers; of the image data it reads a small sample, for the fingerprint."""
    with path.open("rb") as file:
        found = _Walk(path, file, choice)
        found.run()
        rows = found.rows
        sampled = _sample_bytes(file, [(row.offset, row.length) for row in rows])
    labels, words = numbered([row.label for row in rows])
    notes = found.notes(int((labels != NO_LABEL).sum()))
    suffixes = tuple(sorted({row.suffix for row in rows}))
    return ShardIndex(
        name=str(path),
        suffixes=suffixes,
        suffix=np.array([suffixes.index(row.suffix) for row in rows], dtype=np.uint8),
        offset=np.array([row.offset for row in rows], dtype=np.int64),
        length=np.array([row.length for row in rows], dtype=np.int64),
        label=labels,
        key_text=join_keys([one_line(row.name) for row in rows]),
        start=np.zeros(0, dtype=np.int64),
        checksum=NO_SUMS,
        sampled=np.array([sampled], dtype=np.uint64),
        notes=replace(notes, words=words),
    )


def one_line(name: str) -> str:
    """Names in a tar may hold line breaks; keys and messages may not."""
    return name.replace("\n", "\\n")


class _Row(NamedTuple):
    key: str  # webdataset's
    member: str  # complete suffix
    name: str  # key of the image by itself
    suffix: str
    offset: int
    length: int
    label: str


class _Walk:
    def __init__(self, path: Path, file: BinaryIO, choice: Choice) -> None:
        self._path, self._file = path, file
        self._choice, self._chooser = choice, Chooser(choice)
        self.rows: list[_Row] = []
        self._apart: dict[str, tuple[str, str]] = {}  # label and suffix of samples without an image, by key
        self._passed, self._unlabelled = Counter[str](), Counter[str]()
        self._imageless = 0

    def run(self) -> None:
        """From the first member to the last."""
        for key, members in _samples(self._path, self._file, self._passed, self._choice):
            if BAD in members and members[BAD].size:
                self._passed["in samples marked __bad__"] += len(members)
                continue
            try:
                images = self._chooser.images(key, members)
            except UserError as error:
                raise UserError(f"{self._path}: {one_line(str(error))}") from error
            used = {*images, *filter(None, [self._add(key, image, members) for image in images])}
            used |= set() if images else self._note_apart(key, members)
            self._imageless += not used
            count_passed(self._passed, key, members.keys() - used)
        masks = [] if self._choice.image_key else [row for row in self.rows if row.member in self._chooser.companions]
        count_passed(self._passed, "", [row.member for row in masks])
        self._imageless += len(masks)
        dropped, matched = set(masks), set[str]()
        self.rows = [self._joined(row, matched) for row in self.rows if row not in dropped]
        alone = [suffix for key, (_, suffix) in self._apart.items() if key not in matched]
        count_passed(self._passed, "", alone)
        self._imageless += len(alone)

    def _add(self, key: str, image: str, members: Members) -> str | None:
        """Notes an image; the suffix of its label, if there is one."""
        suffix, info = self._chooser.label(image, members), members[image]
        text, problem = ("", "") if suffix is None else self._label(members[suffix], suffix)
        _refuse_sparse(self._path, info)
        self._unlabelled.update([f"{problem} in .{suffix}"] if problem else [])
        self.rows.append(
            _Row(key, image, *split_name(key, image), info.offset_data, info.size, text or (problem and NONE))
        )
        return suffix if text or problem else None

    def _label(self, info: tarfile.TarInfo, suffix: str) -> tuple[str, str]:
        if info.issparse() and suffix.endswith("json"):  # which may hold anything
            return "", ""
        _refuse_sparse(self._path, info)
        if info.size > MOST_LABEL_BYTES:
            return "", "too many bytes"
        self._file.seek(info.offset_data)
        return read_label(self._file.read(info.size), suffix, self._choice.fields())

    def _note_apart(self, key: str, members: Members) -> set[str]:
        used = set[str]()
        for suffix in self._chooser.apart(members):
            text, _ = self._label(members[suffix], suffix)
            if text:
                self._apart[split_name(key, suffix)[0]] = text, suffix
                used.add(suffix)
        return used

    def _joined(self, row: _Row, matched: set[str]) -> _Row:
        """With the label that stands elsewhere in the tar, whose key is then `matched`."""
        if row.label:
            return row._replace(label="" if row.label == NONE else row.label)
        key = next((key for key in (row.name, row.key) if key in self._apart), None)
        if key is None:
            return row
        matched.add(key)
        return row._replace(label=self._apart[key][0])

    def notes(self, labelled: int) -> Notes:
        """What is not used; `labelled`: images that have a label in the end."""
        cut = self._passed.pop(CUT, 0)
        return Notes(
            cut=cut,
            passed=dict(self._passed),
            imageless=self._imageless,
            unlabelled=dict(self._unlabelled),
            labelled=labelled,
            images=len(self.rows),
            foreign=True,
        )


def _sample_bytes(file: BinaryIO, images: list[tuple[int, int]]) -> int:
    """xxh3-64 of the middle of images (offset, length) that are spread over the tar; headers are often all alike."""
    digest = xxhash.xxh3_64()
    for place in np.unique(np.linspace(0, len(images) - 1, min(len(images), SAMPLED_IMAGES)).astype(int)).tolist():
        offset, length = images[place]
        part = min(length, SAMPLED_BYTES)
        file.seek(offset + (length - part) // 2)
        digest.update(file.read(part))
    return digest.intdigest()


def _samples(path: Path, file: BinaryIO, passed: Counter[str], choice: Choice) -> Iterator[tuple[str, Members]]:
    key, members, size = None, Members(), os.fstat(file.fileno()).st_size
    for info in _members(path, file, passed, choice):
        match = KEY_AND_SUFFIX.match(info.name)
        unused = _unused(info, match is not None, size, choice)
        if match is None or unused is not None:
            passed.update([unused] if unused else [])
            continue
        if match[1] != key:
            if key is not None:
                yield key, members
            key, members = match[1], Members()
        suffix = match[2].lower()
        problem = f"webdataset has {suffix!r} for its own use" if suffix in WEBDATASETS_OWN else ""
        problem = "a second member of this name" if suffix in members else problem
        if not problem:
            members[suffix] = info
        elif choice.skip_bad:
            passed[problem] += 1
        else:
            raise UserError(f"{path}: {info.name!r} at byte {info.offset}: {problem}{OR_SKIP}")
    if key is not None:
        yield key, members


def _unused(info: tarfile.TarInfo, named: bool, size: int, choice: Choice) -> str | None:
    """What a member is counted as that is of no sample; '': it is not counted; None: it is of one."""
    if info.islnk() or info.issym():
        return LINKS
    if not info.isreg() or SKIPPED.match(info.name):
        return ""
    if choice.skip_bad and info.issparse():
        return "sparse"
    if not info.issparse() and info.offset_data + info.size > size:
        return "cut off at the end"
    return None if named else ending_of(info.name)


def _members(path: Path, file: BinaryIO, passed: Counter[str], choice: Choice) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    head = file.read(BLOCK)
    if not head:
        raise UserError(f"{path}: is empty")
    file.seek(0)
    try:
        info = None
        try:
            for _, info in tar_members(file, "r:"):
                yield info
        except CutError:
            if not choice.allow_cut:
                raise
            passed[CUT] += 1
        if info is None and size > EMPTY_BYTES:
            raise UserError(f"{path}: holds nothing but zeros; copy it again")
    except tarfile.TarError as error:
        looks = "an HTML page" if head.lstrip()[:1] == b"<" else compression(head) or f"{size} bytes"
        raise UserError(f"{path}: no readable tar, cut or damaged ({error}; the file is {looks})") from error


def _refuse_sparse(path: Path, info: tarfile.TarInfo) -> None:
    if info.issparse():
        problem = "is sparse; write this tar again without --sparse"
        raise UserError(f"{path}: {info.name!r} at byte {info.offset} {problem}{OR_SKIP}")
