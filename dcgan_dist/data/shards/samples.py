"""Chooses the images and labels among the members of a tar's samples.

Members are grouped into samples as webdataset does: a key ends at the first dot of the file name, the suffix is lower
case, members of one sample are adjacent, names like `__x__` are skipped, and only regular files are used. Of several
images, the one whose complete suffix comes first in IMAGE_SUFFIXES is used: of `1.png`, `1.jpg`, `1.seg.png` and
`1.txt`, `1.jpg`. If there is none, further dots are part of the key: `img.0001.jpg` and `img.0002.jpg` are two images,
although webdataset takes both for parts of a sample `img`. `2.seg.png` without `2.jpg` is not an image if masks stood
beside earlier images. If they do so only later, and for `1.left.jpg`, `1.right.jpg`, `2.left.jpg` and `2.right.jpg`,
the tar is ambiguous, and --image_key has to choose.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from dcgan_dist.data.images.formats import IMAGE_SUFFIXES
from dcgan_dist.data.shards.labels import FIELDS
from dcgan_dist.errors import UserError

LABELS = ("cls", "class", "label", "json")  # suffixes; the first one counts
IGNORED = "image_key, label_key and allow_cut are not used: they are for tars of other programs"
HOW = "choose one by its key, as in --image_key"
IN_TRAINING = " (--data.image_key in training, with --resume.allow_changes data.image_key where a run goes on)"
_KNOWN = frozenset(IMAGE_SUFFIXES)


@dataclass(frozen=True)
class MemberChoice:
    """How tars of other programs are read; the defaults suit most."""

    image_key: str | None = None
    """Suffix of the image in every sample, as in input.jpg; of several, separated by ';', the first that exists."""
    label_key: str | None = None  # the same for the label; or the field of the .json member that holds it
    allow_cut: bool = False  # accept tars without an end mark; an incomplete last member is left out
    skip_bad: bool = False  # leave out members that cannot be used, instead of refusing the tar

    @property
    def for_tars(self) -> bool:
        """Whether an option is set that is only for tars of other programs."""
        return bool(self.image_key or self.label_key or self.allow_cut)

    def images(self) -> list[str]:
        """Suffixes."""
        return _parts(self.image_key)

    def labels(self) -> Sequence[str]:
        """Suffixes."""
        return [*_parts(self.label_key), "json"] if self.label_key else LABELS

    def fields(self) -> Sequence[str]:
        """Fields of .json members."""
        given = [part.strip() for part in (self.label_key or "").split(";") if part.strip() not in ("", "json")]
        return given or FIELDS


def _parts(text: str | None) -> list[str]:
    return [part.strip().removeprefix(".").lower() for part in (text or "").split(";") if part.strip()]


class MemberChooser:
    """Chooses in the samples of one tar, in their order."""

    def __init__(self, choice: MemberChoice) -> None:
        self._images, self._labels, self._skip_bad = choice.images(), choice.labels(), choice.skip_bad
        self._roles: set[str] = set()  # dotted suffixes of images of the same sample
        # dotted suffixes of images without a plain one beside them: the key of the last, and their number
        self._alone: dict[str, tuple[str, int]] = {}
        self.used_alone = 0  # with skip_bad: images that stand alone, although later ones of their suffix do not
        self.companions: set[str] = set()  # dotted suffixes beside a plain image: masks and the like

    def images(self, key: str, suffixes: Collection[str]) -> list[str]:
        """Suffixes of the members that are images. Raises UserError if that is ambiguous."""
        if self._images:
            return [suffix for suffix in self._images if suffix in suffixes][:1]
        hidden = key.endswith("/")  # to webdataset, x/._a.jpg is a member _a.jpg of a sample x/
        dotted = [part for part in suffixes if "." in part and part.rpartition(".")[2] in _KNOWN and not hidden]
        plain = next((suffix for suffix in IMAGE_SUFFIXES if suffix in suffixes), None)
        if plain is not None:
            for suffix in self._alone.keys() & dotted:
                lone, count = self._alone.pop(suffix)
                self.used_alone += count
                if self._skip_bad:
                    continue
                names = f"{lone}.{suffix} alone and {key}.{suffix} beside {key}.{plain}"
                raise UserError(f"images or not? {names}; {HOW} {plain}{IN_TRAINING}, or remove what stands alone")
            self.companions.update(dotted)
            return [plain]
        own = [suffix for suffix in dotted if suffix not in self.companions]
        words = [suffix for suffix in own if not any(map(str.isdecimal, suffix.rpartition(".")[0]))]
        if len(own) > 1:
            if not self._roles.isdisjoint(words):
                names = " and ".join(f"{key}.{suffix}" for suffix in own[:3])
                which = f"{HOW} {own[0]}{IN_TRAINING}, or rename the files: webdataset ends a name at its first dot"
                raise UserError(f"several images in each sample, as in {names}; {which}")
            self._roles.update(words)
        self._alone |= {suffix: (key, self._alone.get(suffix, ("", 0))[1] + 1) for suffix in own}
        return own

    def label(self, image: str, suffixes: Collection[str]) -> str | None:
        """The suffix of the label of an image."""
        middle = image.rpartition(".")[0]
        own = [f"{middle}.{suffix}" for suffix in self._labels] if middle else []
        return next((suffix for suffix in [*own, *self._labels] if suffix in suffixes), None)

    def apart(self, suffixes: Iterable[str]) -> list[str]:
        """Suffixes of labels in a sample without an image."""
        return [suffix for suffix in suffixes if suffix.rpartition(".")[2] in self._labels or suffix in self._labels]


def split_name(key: str, suffix: str) -> tuple[str, str]:
    """Key and suffix of an image as a file: 'img' and '0001.jpg' are 'img.0001' and 'jpg'."""
    middle, dot, last = suffix.rpartition(".")
    return f"{key}{dot and '.'}{middle}", last


def escape_newlines(name: str) -> str:
    """Names in a tar may contain line breaks; keys and messages may not."""
    return name.replace("\n", "\\n")


def count_passed(passed: Counter[str], key: str, suffixes: Iterable[str]) -> None:
    """Counts unused members by suffix; those with a number in it, as in 0001.jpg, by its last part."""
    for suffix in suffixes:
        middle, _, last = suffix.rpartition(".")
        passed["hidden" if key.endswith("/") else f".{last if any(map(str.isdecimal, middle)) else suffix}"] += 1
