"""A manifest for shards that a test has written."""

from collections import Counter

import xxhash

from dcgan_dist.data.shards.index import corpus_fingerprint, read_index
from dcgan_dist.data.shards.manifest import ClassEntry, Manifest, ShardEntry


def manifest_of(paths, names=("cat",)):
    """Of shards of our own with 32 x 32 JPEGs, the labels 0, 1 .. of which stand for `names`."""
    entries, counts = [], Counter()
    for path in paths:
        data, index = path.read_bytes(), read_index(path)
        assert index is not None
        counts.update(index.label.tolist())
        entries.append(
            ShardEntry(
                name=path.name,
                bytes=len(data),
                samples=len(index),
                xxh128=xxhash.xxh3_128_hexdigest(data),
                fingerprint=f"{index.fingerprint:016x}",
            )
        )
    samples = sum(entry.samples for entry in entries)
    return Manifest(
        samples=samples,
        bytes=sum(entry.bytes for entry in entries),
        fingerprint=corpus_fingerprint(int(entry.fingerprint, 16) for entry in entries),
        size=32,
        channels=3,
        store="jpg",
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        stored_sizes={"32x32": samples},
        source_sizes={"32x32": samples},
        classes=tuple(ClassEntry(label=n, name=name, samples=counts[n]) for n, name in enumerate(names)),
        unlabelled=0,
        duplicates=None,
        bad=0,
        options={},
        shards=tuple(entries),
    )
