"""Processes that a test looks for among all those that other tests have left."""

import contextlib
import os
from pathlib import Path

import psutil


def decoders(pid=None):
    """The decoding processes of a process; tests that ran before may have left others."""
    return children("decode_worker", pid)


def children(word, pid=None, recursive=False):
    """Those of a process that have not ended, and whose command has this word."""
    found = []
    for child in psutil.Process(pid).children(recursive):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that just ends, or has and was not waited for
            found += [child] if word in " ".join(child.cmdline()) else []
    return found


def of_group(group):
    """The processes of a process group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # one that just ends
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def open_files():
    """Descriptors of this process, without its connections to web servers, which end when they like."""
    files = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            files += [path] if not str(path.readlink()).startswith("socket:") else []
    return len(files) + len(psutil.Process().net_connections(kind="unix"))
