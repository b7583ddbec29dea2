import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dcgan_dist.config import Config
from dcgan_dist.config.groups import LogConfig
from dcgan_dist.run.tensorboard import open_tensorboard

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def start(run_dir, images=0):
    tracker = open_tensorboard(Config(run_dir=run_dir), images, lambda _: None)
    assert tracker is not None
    return tracker


def read(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    return events.Reload()


def points(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_what_is_written_can_be_read_while_the_run_goes_on(tmp_path):
    tracker = start(tmp_path)
    tracker.scalars(128, {"loss/d": 0.5, "d/real": 0.25})
    tracker.scalars(256, {"loss/d": 0.75})
    events = read(tmp_path)
    assert points(events, "loss/d") == [(128, 0.5), (256, 0.75)]
    assert points(events, "d/real") == [(128, 0.25)]
    tracker.histogram(256, "g/weights", np.array([1.0, 2.0, np.nan, 4.0]))
    tracker.histogram(256, "g/nothing", np.array([np.nan]))
    tracker.picture(256, "samples", PICTURE)
    events.Reload()
    (image,) = events.Images("samples")
    assert image.step == 256
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), PICTURE)
    (histogram,) = events.Histograms("g/weights")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.max) == (256, 3, 4)
    assert events.Tags()["histograms"] == ["g/weights"]
    tracker.close()


@pytest.mark.parametrize(("images", "kept"), [(200, [0, 100, 200]), (0, [])])
def test_a_resumed_run_hides_what_it_writes_again(tmp_path, images, kept):
    tracker = start(tmp_path)
    for seen in (0, 100, 200, 300):
        tracker.scalars(seen, {"loss/d": 1.0})
    tracker.close()
    tracker = start(tmp_path, images)
    tracker.scalars(300, {"loss/d": 2.0})
    tracker.close()
    assert points(read(tmp_path), "loss/d") == [*((seen, 1.0) for seen in kept), (300, 2.0)]


def test_without_tensorboard_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    said = []
    assert open_tensorboard(Config(run_dir=tmp_path), 0, said.append) is None
    assert said == ["TensorBoard: not installed (pip install tensorboard)"]


def test_switched_off_it_writes_and_says_nothing(tmp_path):
    config = replace(Config(run_dir=tmp_path), log=LogConfig(tensorboard=False))
    said = []
    assert open_tensorboard(config, 0, said.append) is None
    assert (said, list(tmp_path.iterdir())) == ([], [])
