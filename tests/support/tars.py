"""Tars made by other programs: what plain webdataset reads of them."""

import re

from webdataset.tariterators import group_by_keys, tar_file_expander

from dcgan_dist.data.images.formats import IMAGE_SUFFIXES


def as_webdataset_reads(path, streamed=False):
    """Key, suffix, bytes and label of every image in webdataset's samples, as by_index gives them.

    Where no suffix is that of an image by itself, those count that end like one. `streamed`: of labels that stand apart
    from their image nothing can be known. Raises ValueError for what can be read in several ways.
    """
    with path.open("rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])))
    apart = {sample["__key__"]: sample for sample in samples if not images_in(sample) and label_in(sample)}
    apart = {} if streamed else apart
    masks, sides, alone, found = set(), set(), set(), []
    for sample in samples:
        suffixes = images_in(sample)
        if "." not in "".join(suffixes[:1]):
            masks.update(suffix for suffix in suffixes if "." in suffix)
            if masks & alone:
                raise ValueError("images or not")
            suffixes = suffixes[:1]
        suffixes = [suffix for suffix in suffixes if suffix not in masks]
        if len(suffixes) > 1:
            words = {suffix for suffix in suffixes if not re.search(r"\d.*[.]", suffix)}
            if words & sides:
                raise ValueError("several images in each sample")
            sides |= words
        alone.update(suffix for suffix in suffixes if "." in suffix)
        for suffix in suffixes:
            *middle, last = suffix.rsplit(".", 1)
            key = ".".join([sample["__key__"], *middle])
            label = label_in(sample) or label_in(apart.get(sample["__key__"], {})) or "-1"
            found.append((key, last, sample[suffix], int(label)))
    return found


def images_in(sample):
    """Suffixes, the chosen one first."""
    suffixes = [suffix for suffix in sample if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    if sample["__key__"].endswith("/"):  # x/.a.jpg is a hidden file, and not x/.jpg
        suffixes = [suffix for suffix in suffixes if "." not in suffix]
    return sorted(suffixes, key=lambda suffix: (*IMAGE_SUFFIXES, suffix).index(suffix))


def label_in(sample):
    """Its digits."""
    text = next((sample[suffix] for suffix in ("cls", "json") if sample.get(suffix, b"").strip()), b"").strip()
    return text.decode() if text.isdigit() else ""
