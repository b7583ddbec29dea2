"""One of the ranks that the doctor starts: python -m dcgan_dist.commands.doctor.rank CONFIG ANSWER."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from dcgan_dist import cli
from dcgan_dist.commands.doctor.spawn import SECONDS
from dcgan_dist.commands.doctor.talk import talk
from dcgan_dist.parallel.ending import leave
from dcgan_dist.parallel.world import launch


def main() -> None:
    """Joins the others; the first rank writes what they found."""
    options, answer = sys.argv[1:]
    config = replace(cli.load(["--config", options], quiet=True), world_size=None, timeout=int(SECONDS))
    world = launch(config)
    found = talk(config, world)
    if world.main:
        Path(answer).write_text(json.dumps(asdict(found)))
    world.close()


if __name__ == "__main__":
    main()
    leave(0)
