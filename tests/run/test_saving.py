"""Saves beside the training: what is written is the state of its moment, and what goes wrong is told."""

import threading
from collections.abc import Iterator

import pytest
import torch
from support.disk import no_file_larger_than
from support.waiting import LIMIT

from dcgan_dist.config.run_groups import CheckpointConfig
from dcgan_dist.errors import UserError
from dcgan_dist.run import checkpoint
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.saving import Saver


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def said():
    return []


@pytest.fixture
def make(folder, said) -> Iterator:
    made = []

    def make(**options: object) -> Saver:
        made.append(Saver(folder, CheckpointConfig(**options), Lease(folder.root), said.append, torch.device("cpu")))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for saver in made:
        saver.close()


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """The thread does not get past the first file before this is set."""
    event = threading.Event()
    write = checkpoint._write_files
    monkeypatch.setattr(checkpoint, "_write_files", lambda *given: (event.wait(LIMIT), write(*given)))
    return event


def tensors(value: float = 0.0) -> checkpoint.Tensors:
    return {"netg": {"weight": torch.full((64,), value)}, "stats": {"loss/d": torch.tensor([1.0, 2.0, 3.0])}}


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_what_is_saved_is_the_state_of_that_moment(make, folder, gate):
    """The networks go on while it is written."""
    saver, state = make(), tensors(1.0)
    saver.save(100, state, {"images": 100})
    assert not (folder.checkpoints / "000000100").exists()
    for part in state.values():
        for value in part.values():
            value.fill_(5.0)
    gate.set()
    saver.finish()
    loaded, _ = checkpoint.load(folder.checkpoints / "000000100")
    assert torch.equal(loaded["netg"]["weight"], torch.full((64,), 1.0))
    assert loaded["stats"]["loss/d"].tolist() == [1.0, 2.0, 3.0]


def test_the_next_save_waits_for_the_one_before(make, folder, gate):
    """So that there is never more than one copy of the state."""
    saver = make()
    saver.save(100, tensors(), {"images": 100})
    second = threading.Thread(target=saver.save, args=(200, tensors(), {"images": 200}))
    second.start()
    second.join(0.3)  # a save that did not wait would be back by now
    assert second.is_alive()
    gate.set()
    second.join(LIMIT)
    assert (folder.checkpoints / "000000100").exists()
    saver.finish()
    assert names(folder) == ["000000100", "000000200", "latest"]


def test_a_blocking_save_is_on_disk_when_it_returns(make, folder):
    make(blocking=True).save(100, tensors(), {"images": 100})
    assert checkpoint.verify(folder.checkpoints / "000000100") is None


@pytest.mark.parametrize("blocking", [False, True])
def test_the_seconds_are_reported_once(make, blocking, gate):
    saver = make(blocking=blocking)
    assert saver.seconds() == {}
    if blocking:
        gate.set()
    saver.save(100, tensors(), {"images": 100})
    seconds = saver.seconds()
    assert seconds.keys() == {"time/save_seconds"} | ({"save/write_seconds"} if blocking else set())
    assert all(0 < value < LIMIT for value in seconds.values())
    gate.set()
    saver.finish()
    assert saver.seconds().keys() == (set() if blocking else {"save/write_seconds"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_saved(make, folder, value):
    saver, state = make(most_failures=9), tensors()
    state["netg"]["weight"][7] = value
    saver.save(100, state, {"images": 100})
    with pytest.raises(UserError, match=r"^netg: weight is not finite; nothing was saved"):
        saver.finish()
    assert not folder.checkpoints.exists()


def succeed(saver: Saver, images: int) -> None:
    saver.save(images, tensors(), {"images": images})
    assert saver._running is None or saver._running.result(LIMIT)


def fail(saver: Saver, images: int) -> None:
    with no_file_larger_than(300):
        saver.save(images, tensors(), {"images": images})
        assert saver._running is None or saver._running.exception(LIMIT) is not None


@pytest.mark.parametrize("blocking", [False, True])
def test_a_full_disk_is_a_warning_until_it_was_full_too_often(make, folder, said, blocking):
    saver = make(most_failures=2, blocking=blocking)
    for images in (100, 200, 300):  # each other one fails: never two in a row
        fail(saver, images)
        saver.check()
        succeed(saver, images + 50)
    assert len(said) == 3
    assert said[0].startswith(f"WARNING: {folder.checkpoints / '000000100'}: the checkpoint could not be saved (File")
    assert said[0].endswith(
        " MB free); older ones are untouched; the run goes on and tries again at the next save (failure 1 of 2)"
    )
    if blocking:
        fail(saver, 400)
        with pytest.raises(UserError) as error:
            fail(saver, 500)
    else:
        fail(saver, 400)
        saver.check()
        fail(saver, 500)
        with pytest.raises(UserError) as error:
            saver.check()
    message = str(error.value)
    assert message.startswith(
        f"{folder.checkpoints / '000000500'}: the checkpoint could not be saved (File too large; "
    )
    assert message.endswith(" MB free); older ones are untouched. Fix that and run the same command again")
    assert names(folder) == ["000000150", "000000250", "000000350", "latest"]


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_the_last_save_of_an_attempt_must_not_fail(make, blocking, told):
    saver = make(most_failures=9, blocking=blocking)
    fail(saver, 100)
    if told:
        saver.check()
    with pytest.raises(UserError, match=r"could not be saved .* Fix that and run the same command again$"):
        saver.finish()


def test_what_is_wrong_with_the_program_is_not_hidden(make, monkeypatch):
    def bug(*_) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "_write_files", bug)
    saver = make()
    saver.save(100, tensors(), {"images": 100})
    with pytest.raises(ZeroDivisionError):
        saver.finish()


def test_no_thread_is_left(make):
    before = threading.active_count()
    saver = make()
    saver.save(100, tensors(), {"images": 100})
    saver.close()
    assert threading.active_count() <= before
