import numpy as np

from dcgan_dist.config import Config, WandbConfig
from dcgan_dist.run.trackers import Trackers, open_trackers

PICTURE = np.zeros((2, 2, 3), dtype=np.uint8)


class Recorder:
    """A tracker that writes down its calls, and fails in those it is told to."""

    def __init__(self, name="good", fails=()):
        self.name, self.fails, self.calls = name, fails, []

    def note(self, *call):
        self.calls.append(call)
        if call[0] in self.fails:
            raise ConnectionResetError("the server\nis gone")

    def scalars(self, images, values):
        self.note("scalars", images, values)

    def picture(self, images, name, array):
        self.note("picture", images, name, array.shape)

    def histogram(self, images, name, values):
        self.note("histogram", images, name, values.shape)

    def alert(self, title, text):
        self.note("alert", title, text)

    def close(self, exit_code=0):
        self.note("close", exit_code)


def use(trackers):
    trackers.scalars(1, {"loss/d": 0.5})
    trackers.picture(2, "samples", PICTURE)
    trackers.histogram(3, "weights", PICTURE[0])
    trackers.alert("collapse", "G makes one picture")
    trackers.close(75)


ALL = [
    ("scalars", 1, {"loss/d": 0.5}),
    ("picture", 2, "samples", (2, 2, 3)),
    ("histogram", 3, "weights", (2, 3)),
    ("alert", "collapse", "G makes one picture"),
    ("close", 75),
]


def test_every_tracker_hears_everything():
    said, recorders = [], [Recorder(), Recorder()]
    trackers = Trackers(said.append)
    for recorder in recorders:
        trackers.start(recorder.name, lambda recorder=recorder: recorder)
    use(trackers)
    trackers.close()  # once more does nothing
    assert [recorder.calls for recorder in recorders] == [ALL, ALL]
    assert said == []


def test_a_failing_tracker_is_switched_off_and_the_others_go_on():
    said, bad, good = [], Recorder("bad", fails={"picture", "close"}), Recorder()
    trackers = Trackers(said.append)
    for recorder in (bad, good):
        trackers.start(recorder.name, lambda recorder=recorder: recorder)
    use(trackers)
    assert good.calls == ALL
    assert bad.calls == [*ALL[:2], ("close", 1)]
    assert said == ["bad is switched off, the training goes on: ConnectionResetError: the server is gone"]


def test_a_tracker_that_cannot_start_is_left_out():
    def fail():
        raise OSError(28, "No space left on device")

    said, good = [], Recorder()
    trackers = Trackers(said.append)
    trackers.start("bad", fail)
    trackers.start("off", lambda: None)
    trackers.start("good", lambda: good)
    use(trackers)
    assert good.calls == ALL
    assert said == ["bad is switched off, the training goes on: OSError: [Errno 28] No space left on device"]


def test_the_options_decide(tmp_path):
    said = []
    config = Config(run_dir=tmp_path, wandb=WandbConfig(mode="disabled"))
    trackers = open_trackers(config, 0, said.append, lambda: None, {})
    trackers.scalars(0, {"loss/d": 1.0})
    trackers.close()
    assert said == [
        f"TensorBoard: tensorboard --logdir {tmp_path}/tensorboard",
        "W&B: disabled (--wandb.mode disabled)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
