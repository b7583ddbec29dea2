import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.wandb_runs import beginning
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer as PluginEventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from dcgan_dist.config import Config
from dcgan_dist.config.groups import DataConfig
from dcgan_dist.config.run_groups import LogConfig
from dcgan_dist.location import Location
from dcgan_dist.run.tensorboard import open_tensorboard

API: Any = api_pb2  # generated code, without types
PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def start(run_dir, images=0, **options):
    tracker = open_tensorboard(beginning(Config(run_dir=run_dir, **options), [], images=images))
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
    assert open_tensorboard(beginning(Config(run_dir=tmp_path), said)) is None
    assert said == ["TensorBoard: not installed (pip install tensorboard)"]


def hyper_parameters(run_dir):
    """What the HPARAMS tab shows: the only row, and the newest values of the metrics in it."""
    multiplexer = PluginEventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(run_dir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(run_dir))
    tab = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    context = RequestContext()
    metrics = tab.experiment_from_metadata(context, "", True, tab.hparams_metadata(context, ""), []).metric_infos
    request = API.ListSessionGroupsRequest(
        allowed_statuses=API.Status.values(),
        col_params=[API.ColParams(metric=metric.name) for metric in metrics],
        slice_size=10,
    )
    (group,) = list_session_groups.Handler(context, tab, "", request).run().session_groups
    (session,) = group.sessions
    return group.hparams, session.status, {value.name.tag: value.value for value in session.metric_values}


def test_options_are_text_and_one_row_of_hyper_parameters_with_the_last_metrics_also_after_a_resume(tmp_path):
    shards = (Location("https://me:hidden@host/a-{0..9}.tar?sig=hidden"),)
    options = {"data": DataConfig(shards=shards), "augment": ("color", "cutout"), "batch_size": 32}
    tracker = start(tmp_path, **options)
    tracker.scalars(100, {"loss/d": 3.0, "d/real": 0.5})
    tracker.scalars(200, {"loss/d": 2.0})
    tracker.close(exit_code=75)
    assert hyper_parameters(tmp_path)[1] == API.STATUS_UNKNOWN
    tracker = start(tmp_path, images=100, **options)
    tracker.scalars(200, {"loss/d": 1.0, "metrics/fid": 9.0})
    tracker.close()
    options, status, metrics = hyper_parameters(tmp_path)
    assert status == API.STATUS_SUCCESS
    assert metrics == {"loss/d": 1.0, "d/real": 0.5, "metrics/fid": 9.0}
    assert options["batch_size"].number_value == 32
    assert options["augment"].string_value == "color cutout"
    assert options["data.shards"].string_value == "https://host/a-{0..9}.tar"
    events = read(tmp_path).Tensors("options/text_summary")
    assert [event.step for event in events] == [0, 100]
    assert b"    batch_size: 32\n" in events[0].tensor_proto.string_val[0]
    assert b"hidden" not in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


PIXELS = np.arange(256, dtype=np.uint8).repeat(3)


@pytest.mark.parametrize(
    ("values", "limits"),
    [(PIXELS, np.arange(0, 257, 4)), (np.arange(640) / 64 - 3, np.linspace(-3, 639 / 64 - 3, 65))],
    ids=["pixels", "numbers"],
)
def test_a_histogram_has_bins_of_equal_width_and_of_pixels_in_whole_values(tmp_path, values, limits):
    tracker = start(tmp_path)
    tracker.histogram(8, "values", values)
    tracker.close()
    found = read(tmp_path).Histograms("values")[0].histogram_value
    np.testing.assert_allclose(found.bucket_limit, limits[1:], rtol=1e-12)
    assert max(found.bucket) - min(found.bucket) <= (values is not PIXELS)
    assert sum(found.bucket) == found.num == values.size
    assert found.sum_squares == pytest.approx(np.square(values.astype(float)).sum())


def test_switched_off_it_writes_and_says_nothing(tmp_path):
    said = []
    config = Config(run_dir=tmp_path, log=LogConfig(tensorboard=False))
    assert open_tensorboard(beginning(config, said)) is None
    assert said == []
    assert not (tmp_path / "tensorboard").exists()
