"""The same few pictures in every kind of source, and what a source gives."""

import io
import tarfile
from multiprocessing import Pipe

from support.shards import encoded

PICTURES = {f"{kind}/{number}.png": encoded(number, "png", size=8) for number, kind in enumerate("bca" * 3)}
BY_NAME = [(PICTURES[name], "abc".index(name[0])) for name in sorted(PICTURES)]
"""Bytes and label of all pictures, sorted by name; the labels are the numbers of the folders."""


def make_folder(folder, files=PICTURES):
    """A folder with these files."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar_bytes(members):
    """A tar of (name, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def ready(source, folder, report=lambda line: None):
    """The source as another process gets it: prepared, and sent there."""
    return sent(source.prepared(folder, report))


def sent(thing):
    """What another process gets of a small thing."""
    here, there = Pipe()
    with here, there:
        here.send(thing)
        return there.recv()


def given(source, folder):
    """Bytes and label of all images, in order."""
    source = ready(source, folder)
    with source.open() as load:
        return [load(item) for item in source.items().images]
