"""The images and labels in a tar of another program, found by reading it from the first member to the last.

Of a file only the headers are read, of a stream also the bytes of its members. Members are grouped into samples as
webdataset does; samples.py chooses images and labels.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dcgan_dist.data.images.formats import ending_of
from dcgan_dist.data.shards.index import SKIPPED
from dcgan_dist.data.shards.labels import read_label
from dcgan_dist.data.shards.notes import Notes
from dcgan_dist.data.shards.samples import MemberChoice, MemberChooser, count_passed, escape_newlines, split_name
from dcgan_dist.data.shards.tarfiles import CutError, Header
from dcgan_dist.errors import UserError

KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
WEBDATASETS_OWN = ("__key__", "__url__")  # webdataset adds them to every sample, so they cannot be suffixes
BAD = "__bad__"  # webdataset skips a sample with a non-empty member of this suffix
LINKS = "links (write the tar with --dereference --hard-dereference)"
MOST_LABEL_BYTES = 2**20
OR_SKIP = ", or leave such members out (shard --skip_bad, --data.damaged substitute)"
NONE = "\0"  # an unusable label

Members = dict[str, Header]
Load = Callable[[Header], bytes]


class FoundImage(NamedTuple):
    """An image."""

    key: str  # of the sample in webdataset
    name: str  # key of the image
    suffix: str
    offset: int  # of its bytes in the tar
    size: int
    data: bytes  # of a stream, else empty; keeping the header of each image would take 450 bytes
    label: str  # '': none beside it


class TarWalker:
    """Reads one tar once; counts what is not used."""

    def __init__(self, name: str, members: Iterable[Header], load: Load, choice: MemberChoice) -> None:
        """`name`: of the tar, for messages. `load`: returns the bytes of the member that was read last."""
        self._name, self._members, self._load = name, members, load
        self._choice, self._chooser = choice, MemberChooser(choice)
        self.separate_labels: dict[str, tuple[str, str]] = {}  # label and suffix of samples without an image, by key
        self.passed = Counter[str]()  # members that are not used
        self.unlabelled = Counter[str]()  # images whose label cannot be used, by reason
        self._imageless = self._cut = 0

    def images(self) -> Iterator[FoundImage]:
        """The images in their order. Raises UserError for unusable members, and for a damaged tar."""
        for key, members in self._samples():
            if BAD in members and members[BAD].size:
                self.passed["in samples marked __bad__"] += len(members)
                continue
            try:
                images = self._chooser.images(key, members)
            except UserError as error:
                raise UserError(f"{self._name}: {escape_newlines(str(error))}") from error
            found = [self._image(key, image, members) for image in images]
            used = {*images, *(suffix for _, suffix in found if suffix is not None)}
            used |= set() if images else self._note_separate_labels(key, members)
            self._imageless += not used
            count_passed(self.passed, key, members.keys() - used)
            yield from (image for image, _ in found)

    def joined(self, images: Iterable[FoundImage]) -> list[FoundImage]:
        """All images that images() has returned, with labels from anywhere in the tar."""
        matched, rows = set[str](), list[FoundImage]()
        for image in images:
            label = "" if image.label == NONE else image.label
            key = next((key for key in (image.name, image.key) if key in self.separate_labels), None)
            if key is not None and not image.label:
                matched.add(key)
                label = self.separate_labels[key][0]
            rows.append(image._replace(label=label))
        alone = [suffix for key, (_, suffix) in self.separate_labels.items() if key not in matched]
        count_passed(self.passed, "", alone)
        self._imageless += len(alone)
        return rows

    def _samples(self) -> Iterator[tuple[str, Members]]:
        key, members = None, Members()
        for info in self._until_cut():
            match = KEY_AND_SUFFIX.match(info.name)
            unused = self._unused(info, match is not None)
            if match is None or unused is not None:
                self.passed.update([unused] if unused else [])
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
            elif self._choice.skip_bad:
                self.passed[problem] += 1
            else:
                raise self._error(info, f": {problem}")
        if key is not None:
            yield key, members

    def _until_cut(self) -> Iterator[Header]:
        try:
            yield from self._members
        except tarfile.TarError as error:
            # with skip_bad, everything before any damage is used, too
            if not (self._choice.allow_cut and (self._choice.skip_bad or isinstance(error, CutError))):
                problem = escape_newlines(str(error))
                raise UserError(f"{self._name}: no readable tar, cut or damaged ({problem})") from error
            self._cut = 1

    def _unused(self, info: Header, named: bool) -> str | None:
        """The kind of a member that belongs to no sample; '': it is not counted; None: it belongs to one."""
        if info.islnk() or info.issym():
            return LINKS
        if not info.isreg() or SKIPPED.match(info.name):
            return ""
        if self._choice.skip_bad and info.issparse():
            return "sparse"
        if info.cut:
            return "cut off at the end"
        return None if named else ending_of(info.name)

    def _error(self, info: Header, problem: str) -> UserError:
        return UserError(f"{self._name}: {info.name!r} at byte {info.offset}{problem}{OR_SKIP}")

    def _refuse_sparse(self, info: Header) -> None:
        if info.issparse():
            raise self._error(info, " is sparse; write this tar again without --sparse")

    def _image(self, key: str, image: str, members: Members) -> tuple[FoundImage, str | None]:
        """An image, and the suffix of its label, if it has one."""
        suffix, info = self._chooser.label(image, members), members[image]
        text, problem = ("", "") if suffix is None else self._label(members[suffix], suffix)
        self._refuse_sparse(info)
        self.unlabelled.update([f"{problem} in .{suffix}"] if problem else [])
        label, names = text or (problem and NONE), split_name(key, image)
        found = FoundImage(key, *names, info.offset_data, info.size, info.data, label)
        return found, suffix if text or problem else None

    def _label(self, info: Header, suffix: str) -> tuple[str, str]:
        if info.issparse() and suffix.endswith("json"):  # which may have no label
            return "", ""
        self._refuse_sparse(info)
        if info.size > MOST_LABEL_BYTES:
            return "", "too many bytes"
        return read_label(self._load(info), suffix, self._choice.fields())

    def _note_separate_labels(self, key: str, members: Members) -> set[str]:
        used = set[str]()
        for suffix in self._chooser.apart(members):
            text, _ = self._label(members[suffix], suffix)
            if text:
                self.separate_labels[split_name(key, suffix)[0]] = text, suffix
                used.add(suffix)
        return used

    def notes(self, images: int, labelled: int) -> Notes:
        """What is not used. `labelled`: images with a label."""
        found: dict[str, Any] = {"cut": self._cut, "imageless": self._imageless, "alone": self._chooser.used_alone}
        passed, unlabelled = dict(self.passed), dict(self.unlabelled)
        return Notes(passed=passed, unlabelled=unlabelled, labelled=labelled, images=images, foreign=True, **found)
