"""What is not used of tars of other programs, and why images have no label; reported in one line each."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dcgan_dist.data.images.formats import count_text


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Of one tar, or of several together."""

    passed: Mapping[str, int] = field(default_factory=dict)
    """Members that are not used, by their endings."""
    imageless: int = 0
    """Samples without an image."""
    alone: int = 0
    """Images that may be masks: they stand alone, and others of their suffix beside an image."""
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    """Images whose label cannot be used, by reason."""
    labelled: int = 0
    images: int = 0
    cut: int = 0
    """Tars without tar's end mark, which are only read where that is allowed."""
    foreign: bool = False
    """Whether they are of a tar of another program."""
    words: tuple[str, ...] = ()
    """Names of the labels 0, 1, .., where some labels are words; of one tar alone."""

    def as_dict(self) -> dict[str, Any]:
        """What is there, for JSON."""
        return {name: value for name, value in asdict(self).items() if value}

    def lines(self) -> list[str]:
        """For people; none where everything is used."""
        found = []
        if self.cut:
            found.append(f"tars without an end mark, perhaps cut: {self.cut:,}; what is there is used (allow_cut)")
        if self.passed or self.imageless:
            without = f"{self.imageless:,} samples without an image" if self.imageless else ""
            members = count_text(self.passed, "other members") if self.passed else ""
            found.append(f"skipped: {', '.join(filter(None, [members, without]))}")
        if self.alone:
            what = "that stand alone, and beside an image elsewhere; image_key chooses"
            found.append(f"used as images, though they may be masks: {self.alone:,} {what}")
        missing = self.images - self.labelled
        if missing and (self.labelled or self.unlabelled):
            reasons = Counter(self.unlabelled)
            alone = missing - reasons.total()
            reasons += Counter({"no label found": alone})
            found.append(f"labels: {count_text(reasons, f'of {self.images:,} images have none')}")
        return found


def from_dict(tree: Mapping[str, Any]) -> Notes:
    """The inverse of Notes.as_dict."""
    known: dict[str, Any] = {name: tree[name] for name in Notes.__dataclass_fields__ if name in tree}
    known["words"] = tuple(tree.get("words", ()))
    return Notes(**known)


def merge_notes(notes: Iterable[Notes]) -> Notes:
    """The sums over several tars."""
    passed, unlabelled, counts = Counter[str](), Counter[str](), [0, 0, 0, 0, 0]
    for each in notes:
        passed.update(each.passed)
        unlabelled.update(each.unlabelled)
        own = (each.imageless, each.labelled, each.images, each.cut, each.alone)
        counts = [a + b for a, b in zip(counts, own, strict=True)]
    imageless, labelled, images, cut, alone = counts
    known: dict[str, Any] = {"imageless": imageless, "labelled": labelled, "images": images, "cut": cut, "alone": alone}
    return Notes(passed=passed, unlabelled=unlabelled, **known)
