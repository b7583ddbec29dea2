"""A real SLURM cluster on this machine."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.launching import ROOT, environment
from support.waiting import LIMIT

SCRIPTS = ROOT / "tests/support/slurm"
NODES = 9  # as many as test_train_sh_faults.py breaks at the same time


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster needs root")
    folder = tmp_path_factory.mktemp("slurm")
    variables = environment(DCS_STATE=folder / "cluster", DCS_NODES=NODES)
    try:
        subprocess.run([SCRIPTS / "slurm-up.sh"], env=variables, check=True, timeout=LIMIT)
        yield Cluster(folder / "cluster", folder)
    finally:
        subprocess.run([SCRIPTS / "slurm-down.sh"], env=variables, check=True, timeout=LIMIT)
