import subprocess
import sys
from typing import Any

import pytest
from support.shards import write_ours

STORE = """
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
input()
"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The pattern of two shards of 23 and 17 images of 32 pixels: ten batches of 12 run through three epochs."""
    folder = tmp_path_factory.mktemp("shards")
    write_ours(folder / "0.tar", 23)
    write_ours(folder / "1.tar", 17, first=23)
    return str(folder / "*.tar")


@pytest.fixture
def store(monkeypatch):
    """A process that holds the store, as a launcher does, or rank 0 where there is none."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STORE], **pipes) as process:
        assert process.stdout is not None
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", process.stdout.readline().strip())
        yield process
        process.kill()
