import pytest
from support.shards import write_ours


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The pattern of two shards of 23 and 17 images of 32 pixels: ten batches of 12 run through three epochs."""
    folder = tmp_path_factory.mktemp("shards")
    write_ours(folder / "0.tar", 23)
    write_ours(folder / "1.tar", 17, first=23)
    return str(folder / "*.tar")
