"""Chromium without a window, from the machine's packages."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
"""The sandbox needs namespaces, which root in a container has not."""


def chromium() -> str | None:
    """Path of the browser, which apt-get installs where there is none; None: it cannot."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install("chromium")
        found = shutil.which("chromium")
    return found


def _install(package: str) -> None:
    install = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-y", "install", "--no-install-recommends", package]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        for command in (install, ["apt-get", "update"], install):
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            )
            if command is install and done.returncode == 0:
                return
        log.seek(0)
        raise RuntimeError(f"apt-get cannot install {package}: {log.read()[-2000:]}")
