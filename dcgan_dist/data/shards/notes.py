"""What is not used of tars of other programs, and why images have no label; reported in one line each."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dcgan_dist.text import count_text, counted


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Of one tar, or of several together."""

    passed: Mapping[str, int] = field(default_factory=dict)  # members that are not used, by their extensions
    imageless: int = 0  # samples without an image
    alone: int = 0  # images that may be masks: they stand alone, but elsewhere one stands beside such a suffix
    unlabelled: Mapping[str, int] = field(default_factory=dict)  # images with an unusable label, by reason
    labelled: int = 0
    images: int = 0
    cut: int = 0  # tars without tar's end mark, which are only read where that is allowed
    foreign: bool = False  # whether they are of a tar of another program
    words: tuple[str, ...] = ()  # class names of the labels 0, 1, .., where some are not numbers; of one tar only

    def as_dict(self) -> dict[str, Any]:
        """The fields that are set, for JSON."""
        return {name: value for name, value in asdict(self).items() if value}

    def lines(self) -> list[str]:
        """Messages; none if everything is used."""
        lines = []
        if self.cut:
            lines.append(f"tars without an end mark, perhaps cut: {self.cut:,}; what is there is used (allow_cut)")
        skipped = [count_text(self.passed, "other member")] if self.passed else []
        if self.imageless:
            skipped.append(counted(self.imageless, "sample without an image", "samples without an image"))
        if skipped:
            lines.append(f"skipped: {', '.join(skipped)}")
        if self.alone:
            what = "that stand alone, and beside an image elsewhere; image_key chooses"
            lines.append(f"used as images, though they may be masks: {self.alone:,} {what}")
        missing = self.images - self.labelled
        if missing and (self.labelled or self.unlabelled):
            reasons = Counter(self.unlabelled)
            reasons += Counter({"no label found": missing - reasons.total()})
            of = f"of {self.images:,} images"
            lines.append(f"labels: {count_text(reasons, f'{of} has none', f'{of} have none')}")
        return lines


def from_dict(tree: Mapping[str, Any]) -> Notes:
    """The inverse of Notes.as_dict; ignores other entries."""
    known: dict[str, Any] = {name: tree[name] for name in Notes.__dataclass_fields__ if name in tree}
    known["words"] = tuple(tree.get("words", ()))
    return Notes(**known)


def merge_notes(notes: Iterable[Notes]) -> Notes:
    """The sums over several tars."""
    totals, kinds = Counter[str](), {"passed": Counter[str](), "unlabelled": Counter[str]()}
    for each in notes:
        totals.update({name: getattr(each, name) for name in ("imageless", "alone", "labelled", "images", "cut")})
        for name, counts in kinds.items():
            counts.update(getattr(each, name))
    return Notes(**totals, **kinds)  # pyright: ignore[reportArgumentType]
