"""The end of W&B's own process, which keeps and sends its files; it would otherwise end with this one."""

import contextlib
import threading
from typing import TYPE_CHECKING

import psutil

from dcgan_dist.run.wandb_history import within

if TYPE_CHECKING:
    import wandb

NAME = "wandb-core"
MORE = 5.0  # seconds after W&B's own limit


def end_service() -> None:
    """Waits until the process has written its files."""
    import wandb

    with contextlib.suppress(SystemExit, ConnectionError):  # that process was killed: no reason to end this one
        wandb.teardown()


def finish(run: "wandb.Run", exit_code: int, seconds: float) -> None:
    """Ends the run, when all is sent or after `seconds`. Raises TimeoutError: not all is sent.

    W&B's own limit does not hold while it tries to send an alert to a server that is down: then its process is killed,
    and what it has not sent is still in the run's folder.
    """
    import wandb
    from wandb.errors import term

    ended = threading.Event()

    def act(_: threading.Event) -> None:
        try:
            run.finish(exit_code=exit_code)
        finally:
            ended.set()

    try:
        within(seconds + MORE, act)
    finally:
        if not ended.is_set():
            term.termsetup(wandb.Settings(silent=True), None)  # what it would print of this, our caller says in a line
            for process in psutil.Process().children():
                if NAME in process.name():
                    process.kill()
                    process.wait()
            ended.wait(MORE)
