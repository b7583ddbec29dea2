"""The command on a rank of a test's world, and what it tells the user."""

import contextlib
import io

from dcgan_dist.train import main


def train_and_capture(given: list[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of this rank."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(given)
    return code, out.getvalue(), err.getvalue()
