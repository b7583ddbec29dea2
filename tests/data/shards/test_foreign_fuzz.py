"""Whatever tar others make: the very samples of webdataset, or one line that says what is wrong; never a part."""

import re
import tarfile
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import by_index
from support.tars import as_webdataset_reads

from dcgan_dist.data.reading.stream import tar_images
from dcgan_dist.data.shards.foreign import DEFAULT, walk
from dcgan_dist.data.shards.samples import MemberChoice
from dcgan_dist.errors import UserError

BLOCK = 512
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@dataclass(frozen=True)
class Member:
    """A member of a tar, and how it is written down."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    format: Literal[0, 1, 2] = tarfile.PAX_FORMAT
    size: str = "octal"
    changed: tuple[int, bytes] | None = None  # other bytes at a place of the header, with a right checksum

    def written(self) -> tuple[bytes, int]:
        """Bytes, and where in them the last header begins."""
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname = self.type, "a.jpg" if self.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
        folder = self.type == tarfile.AREGTYPE and self.name.endswith("/")  # tar's way before there was a type for it
        data = self.data if (info.isreg() or self.type not in tarfile.SUPPORTED_TYPES) and not folder else b""
        info.size = 0 if self.size == "pax" else len(data)
        if self.size == "pax":
            info.pax_headers = {"size": str(len(data)), "mtime": "1234567890.123"}
        buffer = bytearray(self._header(info))
        last = len(buffer) - BLOCK
        if self.size == "base 256":
            buffer[last + 124 : last + 136] = base_256(len(data))
        if self.changed is not None:
            place, other = self.changed
            buffer[last + place : last + place + len(other)] = other
        buffer[last + 148 : last + 156] = b" " * 8
        buffer[last + 148 : last + 156] = b"%06o\0 " % sum(buffer[last : last + BLOCK])
        return bytes(buffer) + data + bytes(-len(data) % BLOCK), last

    def _header(self, info: tarfile.TarInfo) -> bytes:
        try:
            return info.tobuf(tarfile.PAX_FORMAT if self.size == "pax" else self.format)
        except ValueError:  # a name too long for ustar
            return info.tobuf(tarfile.GNU_FORMAT)


def base_256(number: int) -> bytes:
    return (b"\x80" if number >= 0 else b"\xff") + (number % 256**11).to_bytes(11, "big")


def archive(members: list[Member], blocks: int = 2) -> tuple[bytes, list[int]]:
    """A tar with so many zero blocks at the end, and where its headers begin."""
    content, headers = b"", []
    for member in members:
        written, last = member.written()
        headers.append(len(content) + last)
        content += written
    return content + bytes(BLOCK * blocks), headers


FOLDERS = st.sampled_from(
    ["", "./", "x/", "a.b/", "../", "/abs/", "x//", f"{'long' * 20}/{'folder' * 20}/", "__x__/", "é/"]
)
KEYS = st.sampled_from(
    ["a", "b", "000000000", "A", "__a", "__a__", ".hidden", "a b", "caf\udce9", "Ünï", "n" * 120, "", "a\nb"]
)
SUFFIXES = st.one_of(
    st.sampled_from([".jpg", ".JPG", ".jpeg", ".png", ".webp", ".ppm", ".cls", ".Cls", ".txt", ".json", ".npy"]),
    st.sampled_from(["", ".", ".seg.png", ".__key__", ".a.jpg", ".jpg.", ".__bad__", ".__x__", ".jpg__"]),
)
DATA = st.sampled_from([b"", b"7", b" 12\n", b"-3", b"x" * 511, b"y" * 512, b"z" * 1_300, b"\1" * 20_000])
TYPES = st.one_of(st.just(tarfile.REGTYPE), st.sampled_from([bytes([code]) for code in b"\0" + b"123456" + b"7DVZ"]))
SIZES = [b"%011o\0" % size for size in (0, 1, 511, 513, 30_000)] + [b"no number\0\0\0"]
SIZES += [base_256(size) for size in (-1, -512, -5_000, 700)]
KINDS = [bytes([code]) for code in b"\x000123456789LKSxgXDVZ"]
CHANGES = st.one_of(
    st.tuples(st.just(124), st.sampled_from(SIZES)),
    st.tuples(st.just(156), st.sampled_from(KINDS)),
    st.tuples(st.integers(0, 123), st.binary(min_size=1, max_size=1)),  # name, mode, owner
    st.tuples(st.integers(157, BLOCK - 3), st.binary(min_size=1, max_size=3)),  # link, magic, prefix, sparse map
)


@st.composite
def members(draw, *, least=0, strange=False):
    """Whole samples and members by themselves; strange: with headers of which some say something else."""
    names = []
    for _ in range(draw(st.integers(least, 5))):
        name = draw(FOLDERS) + draw(KEYS)
        suffixes = draw(st.lists(SUFFIXES, unique_by=str.lower, min_size=1, max_size=4))
        names += [name + suffix for suffix in suffixes if name + suffix]
    return [
        Member(
            name,
            draw(DATA),
            draw(TYPES),
            draw(st.sampled_from(FORMATS)),
            draw(st.sampled_from(["octal", "base 256", "pax"])),
            draw(st.none() | CHANGES) if strange else None,
        )
        for name in names
    ]


def as_streamed(path, choice=DEFAULT):
    """The same by our stream reader, whose samples have a place instead of a key."""
    rows = []
    for suffix, data, label, where in tar_images(str(path), choice):
        key = where.removeprefix(f"{path}: ").removesuffix(f".{suffix}")
        rows.append((key.replace("\\n", "\n"), suffix, data, label))
    return rows


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file to write to; always the same, for hypothesis makes hundreds."""
    return tmp_path_factory.mktemp("fuzz") / "x.tar"


def outcome(read, path, *choice):
    """The samples, or the line of the error."""
    try:
        return read(path, *choice)
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def by_walk(path, choice=DEFAULT):
    return [(key.replace("\\n", "\n"), *row) for key, *row in by_index(walk(path, choice))]


def theirs(path, streamed=False):
    """The samples of webdataset, or its error."""
    try:
        return as_webdataset_reads(path, streamed)
    except Exception as error:  # it passes on whatever tarfile raises
        return error


@settings(max_examples=400)
@given(members(), st.sampled_from([1, 2, 20]))
def test_any_archive_gives_the_samples_of_webdataset(path, rows, blocks):
    path.write_bytes(archive(rows, blocks)[0])
    for wanted, found in (theirs(path), outcome(by_walk, path)), (theirs(path, True), outcome(as_streamed, path)):
        if isinstance(wanted, Exception):
            assert isinstance(found, str)
        else:
            assert found == wanted


IMAGES = ("", ".jpg", ".JPG", ".png", ".seg.png", ".left.jpg", ".right.jpg", ".0.jpg", ".1.jpg")
OTHERS = (".cls", ".json", ".txt", ".__key__", ".__bad__")
CHOICES = [
    MemberChoice(image_key=key, allow_cut=cut, skip_bad=bad)
    for key in (None, "jpg", "seg.png; png")
    for cut in (False, True)
    for bad in (False, True)
]
SPARSE = tarfile.GNUTYPE_SPARSE


@settings(max_examples=500)
@given(
    st.lists(
        st.builds(
            Member,
            st.builds(
                "{}{}{}".format, st.sampled_from(["", "x/", "l" * 120 + "/"]), KEYS, st.sampled_from(IMAGES + OTHERS)
            ),
            DATA | st.just(b'{"label": 3}'),
            st.sampled_from([tarfile.REGTYPE] * 20 + [tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, SPARSE]),
            st.sampled_from(FORMATS),
        ).filter(lambda member: member.name),
        max_size=8,
    ),
    st.sampled_from(CHOICES),
    st.integers(0, 3_000),
)
def test_both_readers_choose_the_same_or_refuse_in_the_same_words(path, rows, choice, missing):
    """Names may come again, several images in a sample; the end may be cut off."""
    content = archive(rows)[0]
    path.write_bytes(content[: len(content) - missing * choice.allow_cut])
    if not path.stat().st_size:
        return
    indexed, streamed = outcome(by_walk, path, choice), outcome(as_streamed, path, choice)
    if isinstance(indexed, str) or isinstance(streamed, str):
        assert re.sub(r"; the file is .*\)$", ")", str(indexed)) == streamed
        return
    indexed = [row for row in indexed if row[2] or not choice.skip_bad]  # empty images get substitutes
    assert [row[:3] for row in indexed] == [row[:3] for row in streamed]
    for (*_, label), (*_, known) in zip(indexed, streamed, strict=True):
        assert known in (label, -1)  # labels that stand apart from their image come too late


@settings(max_examples=400)
@given(members(least=1, strange=True))
def test_headers_that_say_strange_things(path, rows):
    """With right checksums, so that only what they say can be doubted."""
    path.write_bytes(archive(rows)[0])
    for wanted, found in (theirs(path), outcome(by_walk, path)), (theirs(path, True), outcome(as_streamed, path)):
        assert isinstance(found, str) or found == wanted


@settings(max_examples=300)
@given(members(least=1), st.data())
def test_what_damage_takes_away_is_missed(path, rows, data):
    """An archive that is cut anywhere, or has another byte in a header: an error, or all samples."""
    content, headers = archive(rows)
    path.write_bytes(content)
    whole, in_stream = theirs(path), theirs(path, True)
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="at")]
    else:
        place = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, BLOCK - 1))
        content = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    path.write_bytes(content)
    for wanted, found in (whole, outcome(by_walk, path)), (in_stream, outcome(as_streamed, path)):
        assert isinstance(found, str) or found == wanted


def test_a_folder_with_data_does_not_end_a_tar_without_a_word(path):
    """The name of a folder in the oldest way of tar: webdataset takes its data for a header, and so for the end."""
    folder = Member("x.jpg", b"7", tarfile.AREGTYPE, changed=(5, b"/"))
    path.write_bytes(archive([Member("a.jpg", b"1"), folder, Member("b.jpg", b"2")])[0])
    assert theirs(path) == [("a", "jpg", b"1", -1)]
    assert "no tar header and no end mark at byte 1536" in outcome(by_walk, path)
    assert "no tar header and no end mark at byte 1536" in outcome(as_streamed, path)


def test_a_lost_byte_does_not_rename_the_next_member(path):
    """The header of 00.cls has a right checksum even when it is shifted by one byte; to webdataset it is 0.cls."""
    content = archive([Member("00.jpg", b"x" * 1_300), Member("00.cls", b"0")])[0]
    path.write_bytes(content[:700] + content[701:])
    assert theirs(path) == [("00", "jpg", b"x" * 1_299 + b"\0", -1)]
    assert "no tar header and no end mark at byte 2048" in outcome(by_walk, path)
    assert "no tar header and no end mark at byte 2048" in outcome(as_streamed, path)


def test_the_oldest_tars_have_no_magic(path):
    rows = [Member("a.jpg", b"1", changed=(257, bytes(8))), Member("a.cls", b"7", changed=(257, bytes(8)))]
    path.write_bytes(archive(rows)[0])
    assert theirs(path) == outcome(by_walk, path) == outcome(as_streamed, path) == [("a", "jpg", b"1", 7)]


@settings(max_examples=100)
@given(members(least=1), members(least=1))
def test_two_tars_in_one_are_refused(path, first, second):
    path.write_bytes(archive(first)[0] + archive(second)[0])
    assert isinstance(outcome(by_walk, path), str)
    assert isinstance(outcome(as_streamed, path), str)
