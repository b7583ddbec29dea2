"""The page of a run: one HTML file with its pictures, curves, faults, options and environment."""

import time

from dcgan_dist.config import Config, flatten
from dcgan_dist.errors import UserError
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.text import Say


def write_at_end(config: Config, say: Say, seconds: float) -> None:
    """Writes the page of a run that ends, in about `seconds`, unless it is switched off. A failure costs one line."""
    if not config.log.page:
        return
    folder = RunFolder(config.run_dir)
    until = time.monotonic() + seconds
    try:
        from dcgan_dist.run.report.facts import read_run  # only now: imports take time, and may fail
        from dcgan_dist.run.report.page import is_page, write_page

        if folder.page.is_file() and not is_page(folder.page):
            raise UserError("there is another file of this name, which is kept")
        write_page([read_run(folder.root, flatten(config), [], until)], folder.page, until)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(f"WARNING: {folder.page} was not written ({reason}); dcgan-dist report {folder.root} writes it")
