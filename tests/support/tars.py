"""Tars made by other programs: what plain webdataset reads of them."""

from webdataset.tariterators import group_by_keys, tar_file_expander

from dcgan_dist.data.formats import IMAGE_SUFFIXES
from dcgan_dist.data.index import parse_label


def as_webdataset_reads(path):
    """Key, suffix, bytes and label of every sample with an image, as by_index gives them."""
    with path.open("rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])))
    found = []
    for sample in samples:
        suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
        if suffix is not None:
            found.append((sample["__key__"], suffix, sample[suffix], parse_label(sample.get("cls", b""))))
    return found
