import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dcgan_dist.errors import UsageError
from dcgan_dist.run import folder as run_folder
from dcgan_dist.run.folder import RunFolder, environment, git_state

YAML = "images: 3\n"


def prepared(root: Path) -> RunFolder:
    folder = RunFolder(root)
    folder.prepare(YAML, {"world_size": 2})
    return folder


def refusal(root: Path) -> str:
    with pytest.raises(UsageError) as error:
        prepared(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = prepared(tmp_path / "runs" / "one")
    assert names(folder.root) == {"config.yaml", "environment.json", "samples", "checkpoints"}
    assert folder.config.read_text() == YAML
    assert folder.sample(12_800) == folder.root / "samples" / "000012800.png"


@pytest.mark.parametrize(("place", "mounted"), [("disk", False), ("a b", False), ("disk", True), ("none", False)])
def test_a_new_run_is_not_begun_in_the_mount_point_of_a_disk_that_is_not_there(place, mounted, tmp_path, monkeypatch):
    """Which holds the run, perhaps."""
    point = tmp_path / place
    point.mkdir()
    escaped, table = str(point).replace(" ", "\\040"), tmp_path / "fstab"
    table.write_text(f"# {tmp_path}/none\n\n#UUID=1 {tmp_path}/none ext4\nUUID=2 {escaped} ext4 noauto 0 0\n")
    if place == "none":
        table.write_text(table.read_text().replace("UUID=2", "#UUID=2"))
    with table.open("a") as file:
        file.write(f"UUID=3 / ext4\nUUID=4 {tmp_path}/other ext4\n")
    places = ["/", f"{tmp_path}/other", *([str(point)] if mounted else [])]
    monkeypatch.setattr(run_folder, "FSTAB", table)
    mounts = [SimpleNamespace(mountpoint=each) for each in places]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)  # noqa: A006
    if place == "none" or mounted:
        assert prepared(point / "runs" / "x").config.exists()
    else:
        assert refusal(point / "runs" / "x") == (
            f"--run_dir {point}/runs/x: {point} is a mount point of {table}, where nothing is mounted; mount its disk, "
            "or name another folder"
        )
        (point / "runs" / "x").mkdir(parents=True)
        (point / "runs" / "x" / "config.yaml").write_text("images: 1\n")  # a run that was begun there all the same
        assert prepared(point / "runs" / "x").config.exists()


@pytest.mark.parametrize("mounted", [[], ["/"], ["/proc"], ["/", "/etc/hosts"]])
def test_the_table_of_another_system_says_nothing(mounted, tmp_path, monkeypatch):
    """In a container or chroot: none of its mount points is mounted here, perhaps not even /."""
    table = tmp_path / "fstab"
    table.write_text(f"UUID=1 / ext4\nUUID=2 {tmp_path} ext4\nUUID=3 /elsewhere ext4\n")
    monkeypatch.setattr(run_folder, "FSTAB", table)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [SimpleNamespace(mountpoint=each) for each in mounted])  # noqa: A006
    assert prepared(tmp_path / "runs" / "x").config.exists()


def test_the_root_is_no_mount_point_that_is_missing(tmp_path, monkeypatch):
    table = tmp_path / "fstab"
    table.write_text("UUID=1 / ext4\nproc /proc proc\n")
    monkeypatch.setattr(run_folder, "FSTAB", table)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [SimpleNamespace(mountpoint="/proc")])  # noqa: A006
    assert prepared(tmp_path / "runs" / "x").config.exists()


@pytest.mark.parametrize("below", [".", "runs/x"])
def test_a_link_to_a_disk_that_is_not_there_is_refused_by_name(below, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=f"{tmp_path}/link is a link to {tmp_path}/gone, which is missing; mount"):
        RunFolder(tmp_path / "link" / below).check()


def test_an_empty_folder_will_do(tmp_path):
    assert prepared(tmp_path).config.exists()


def test_an_earlier_attempt_is_taken_over(tmp_path):
    folder = prepared(tmp_path / "run")
    (folder.checkpoints / "000000100").mkdir()
    folder.metrics.write_text('{"images": 1}\n')
    folder.prepare("images: 4\n", {})
    assert folder.config.read_text() == "images: 4\n"
    assert names(folder.root) >= {"metrics.jsonl"}
    assert names(folder.checkpoints) == {"000000100"}


def test_an_attempt_that_was_killed_before_its_configuration_stood_is_taken_over(tmp_path):
    for name in ("samples", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / ".config.yaml.host.123.tmp").write_text("ima")
    assert prepared(tmp_path).config.read_text() == YAML


def test_an_attempt_that_was_stopped_before_it_began_is_taken_over(tmp_path):
    """It leaves only what says so."""
    folder = RunFolder(tmp_path)
    folder.mark(folder.preempted, "0\nSIGTERM")
    assert not prepared(tmp_path).preempted.exists()


@pytest.mark.parametrize("text", ["", "model:\n  images: 3\n", "\xff"])
def test_the_configuration_of_another_program_is_not_replaced(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"holds other files and no config\.yaml of a run; name a new folder$"):
        prepared(tmp_path)
    assert names(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize("left", ["first_checkpoint", "checkpoints/000000100/manifest.json"])
@pytest.mark.parametrize("text", ["", None])
def test_a_folder_with_checkpoints_is_a_run_whatever_became_of_its_configuration(tmp_path, left, text):
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("100\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert prepared(tmp_path).config.read_text() == YAML


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert (
        refusal(tmp_path) == f"--run_dir {tmp_path}: holds other files and no config.yaml of a run; name a new folder"
    )
    assert names(tmp_path) == {"thesis.tex"}


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "run"
    file.write_text("a file")
    assert refusal(file) == f"--run_dir {file}: is a file; name a folder"
    assert refusal(file / "below") == f"--run_dir {file / 'below'}: cannot be written (Not a directory)"
    assert file.read_text() == "a file"


def test_what_cannot_be_made_is_refused(tmp_path):
    long = tmp_path / ("x" * 300)
    assert refusal(long) == f"--run_dir {long}: cannot be used (File name too long)"
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    assert refusal(dangling).startswith(f"--run_dir {dangling}: {dangling} is a link to ")
    virtual = Path("/proc/run")  # not even root writes here
    assert refusal(virtual).startswith(f"--run_dir {virtual}: cannot be written (")


def test_the_ends_of_earlier_attempts_are_forgotten(tmp_path):
    folder = prepared(tmp_path)
    for marker in (folder.done, folder.preempted):
        marker.write_text("100\n")
    folder.prepare(YAML, {})
    assert not folder.done.exists()
    assert not folder.preempted.exists()


def test_the_environment_is_reported_without_its_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush1")
    monkeypatch.setenv("HOME_GROWN_PASSWORD", "hush2")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(sys, "argv", ["train.py", "--images", "3"])
    text = prepared(tmp_path).environment.read_text()
    assert "hush" not in text
    told = json.loads(text)
    assert told["world_size"] == 2
    assert told["command"] == ["train.py", "--images", "3"]
    assert told["slurm_job"] == "77"
    assert told["packages"]["torch"].startswith("2.")
    assert set(told) == set(environment()) | {"world_size"}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    return subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path):
    """A package in a folder of a repository, with one commit that does not hold it."""
    package = tmp_path / "project" / ".venv" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "project" / "other.py").touch()
    git(tmp_path / "project", "init", "-q")
    git(tmp_path / "project", "add", "other.py")
    git(tmp_path / "project", "commit", "-q", "-m", "other")
    return package


NO_GIT = {"git_commit": None, "git_dirty": None}


def test_the_commit_of_a_repository_around_the_package_is_not_its_own(package, tmp_path):
    assert git_state(package) == NO_GIT
    assert git_state(tmp_path) == NO_GIT


def test_the_commit_of_the_package_is_reported_with_whether_its_files_are_those(package, tmp_path, monkeypatch):
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "package")
    commit = git(package, "rev-parse", "HEAD")
    assert git_state(package) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "project" / "other.py").write_text("changed")  # which the package does not run
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as a hook of git has it
    assert git_state(package) == {"git_commit": commit, "git_dirty": False}
    (package / "__init__.py").write_text("changed")
    assert git_state(package) == {"git_commit": commit, "git_dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert git_state(package) == NO_GIT
