import json
import math
import os

import pytest
from support.disk import no_file_larger_than

from dcgan_dist.errors import UserError
from dcgan_dist.run.jsonl import MetricsFile


def strictly(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_record_is_in_the_file_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for images in (0, 128):
        file.append({"images": images, "loss/d": 0.1 + 0.2})
        assert strictly(file.path)[-1] == {"images": images, "loss/d": 0.1 + 0.2}
    assert file.path.read_bytes().count(b"\n") == 2


def test_numbers_that_json_lacks_are_strings(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"images": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e300, "note": None})
    (record,) = strictly(file.path)
    assert record == {"images": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1e300, "note": None}
    assert math.isnan(float(record["a"]))
    assert float(record["c"]) == -math.inf


def test_what_is_synced_is_on_disk_with_all_lines(tmp_path, monkeypatch):
    """A checkpoint relies on it: the attempt that goes on from there does not write them again."""
    file, synced = MetricsFile(tmp_path / "metrics.jsonl"), []
    really = os.fsync

    def fsync(descriptor):
        really(descriptor)
        synced.append((os.fstat(descriptor).st_ino, file.path.read_text()))
        assert os.fstat(descriptor).st_ino in (file.path.stat().st_ino, tmp_path.stat().st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    file.append({"images": 1})
    with no_file_larger_than(14), pytest.raises(UserError, match="cannot be written"):
        file.append({"images": 2})
    assert synced == []
    file.sync()
    both = '{"images": 1}\n{"images": 2}\n'
    assert synced == [(file.path.stat().st_ino, both), (tmp_path.stat().st_ino, both)]


@pytest.mark.parametrize(
    ("images", "left"), [(250, [100, 200]), (200, [100, 200]), (199, [100]), (-1, []), (999, [100, 200, 300])]
)
def test_a_resume_cuts_what_comes_again(tmp_path, images, left):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for seen in (100, 200, 300):
        file.append({"images": seen})
    assert file.cut_after(images) == 3 - len(left)
    file.append({"images": 777})
    assert [record["images"] for record in strictly(file.path)] == [*left, 777]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_torn_line_goes_and_the_complete_ones_stay_byte_for_byte(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"images": 100, "loss/d": 0.1})
    whole = file.path.read_bytes()
    for tear in (
        b'{"images": 200, "lo',
        b'{"images": 200}',
        b"\xff\xfe\n",
        b"[1]\n",
        b"null\n",
        b'{"images": "x"}\n',
        b"{}\n",
    ):
        file.path.write_bytes(whole + tear)
        assert file.cut_after(1000) == 1
        assert file.path.read_bytes() == whole


def test_nothing_to_cut_touches_nothing(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.cut_after(10) == 0
    assert not file.path.exists()
    file.append({"images": 5})
    node = file.path.stat().st_ino
    assert file.cut_after(10) == 0
    assert file.path.stat().st_ino == node
