"""Processes that a test looks for among all those that other tests have left."""

import contextlib

import psutil


def decoders(pid=None):
    """The decoding processes of a process; tests that ran before may have left others."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that just ends
            found += [child] if "decode_worker" in " ".join(child.cmdline()) else []
    return found


def open_files():
    """Descriptors of this process, without its idle connections to web servers, which end when they like."""
    process = psutil.Process()
    return process.num_fds() - len(process.net_connections(kind="tcp"))
