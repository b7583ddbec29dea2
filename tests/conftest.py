"""What all tests share: quiet threads, a cache folder of their own, and in CI no test that hides by skipping itself."""

import os
import signal

# before anything imports torch: several processes share few cores, and waiting threads must not burn them
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "disabled"  # a developer's own account must not see the tests' runs

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from dcgan_dist.errors import show_tracebacks
from dcgan_dist.run.signals import SIGNALS

# ignored in the background and under nohup, which what is started there inherits: they would go untested
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this session and of the processes that it starts: the user's own is never touched."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def without_tracebacks() -> Iterator[None]:
    """A test's --debug is no other test's."""
    show_tracebacks(False)
    yield
    show_tracebacks(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped where there is no GPU. Of several workers each begins with what takes long."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if items and hasattr(items[0].config, "workerinput"):
        long = ("slurm", "gpu", "browser", "dist", "slow")
        items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in long])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With several workers (pytest-xdist) a file's tests stay together, for they share what they set up.

    So do those of the folders for which there is one of something: the cluster, the GPU.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder in ("tests/slurm", "tests/gpu") else file

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI any other skip is a failure: what does not run there runs nowhere."""
    report = yield
    if _in_ci() and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """The same for a complete file that skips itself."""
    report = yield
    if _in_ci() and report.skipped:
        _fail(report)
    return report


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


def _fail(report) -> None:
    report.outcome = "failed"
    report.longrepr = f"skipped, which CI counts as a failure: {report.longrepr[-1]}"


def pytest_runtest_teardown() -> None:
    """A command that Ctrl-C has ended ignores further ones, which must not reach the next test of this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def as_before():
    """For tests that train in this process: a run takes over its signals and its threads."""
    handlers, threads = {number: signal.getsignal(number) for number in SIGNALS}, torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)
