import pytest
from support.images import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """40 images of 32 pixels in two shards of 23 and 17: ten batches of 12 run through three epochs."""
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, (23, 17), 32)
