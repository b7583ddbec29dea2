"""What W&B has besides numbers and pictures, if asked: checkpoints, generator and data set as artifacts, and code.

    RUNID-checkpoint    each version is a checkpoint's folder; aliases latest, best, images-N
    RUNID-generator     G's moving average, in a folder that `dcgan-dist sample` takes
    data-FINGERPRINT    metadata alone: fingerprint and number of images; the run uses it
    source-dcgan_dist   code

Training only makes hard links in RUN/wandb/upload, which keep the files while a checkpoint is removed; a thread and
W&B's own process do the rest, without copies. Of a slot ("latest", "best", ..) one waits at most.
"""

import json
import os
import shutil
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcgan_dist.config.run_groups import WandbConfig
from dcgan_dist.errors import UserError
from dcgan_dist.location import Location
from dcgan_dist.run import checkpoint
from dcgan_dist.run.checkpoint_manifest import MANIFEST
from dcgan_dist.run.folder import git_remote, git_state
from dcgan_dist.run.generator import export

if TYPE_CHECKING:
    import wandb

    from dcgan_dist.run.tracker_start import Start

FACTS = ("git_commit", "git_dirty", "precision", "world_size")  # of the environment, in a checkpoint's metadata
PACKAGE = Path(__file__).parents[1]


def shared(parts: Collection[str]) -> dict[str, Any]:
    """W&B's settings for what leaves the machine. `parts`: --wandb.share."""
    found: dict[str, Any] = {
        "console": "off",
        "disable_code": True,  # of this program; the package is sent as an artifact
        "disable_git": True,  # W&B itself would look into the current folder's repository, and send its differences
        "x_disable_meta": "host" not in parts,
        "x_save_requirements": False,
        "host": socket.gethostname() if "host" in parts else "",
        "program": "dcgan_dist.train",
    }
    if "git" in parts:
        remote = git_remote(PACKAGE)
        found |= {"git_commit": git_state(PACKAGE)["git_commit"], "git_remote_url": remote and str(Location(remote))}
    return found


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What one version of an artifact is made of."""

    kind: str  # the artifact's name without the run's id: checkpoint or generator
    name: str  # of the checkpoint
    folder: Path
    aliases: tuple[str, ...]  # besides images-N


class Artifacts:
    """The uploads of one attempt that is online."""

    def __init__(self, start: "Start", run: "wandb.Run", rest: str) -> None:
        """`rest`: the command that sends what is missing."""
        config = start.config
        self._run, self._say, self._rest = run, start.say, rest
        self._what, self._keep = config.wandb.artifacts, config.checkpoint.keep
        self._checkpoints = config.run_dir.absolute() / "checkpoints"
        self._folder = config.run_dir.absolute() / "wandb" / "upload"
        self._waiting: dict[str, Upload] = {}  # by slot
        self._code = False
        self._changed, self._closing, self._given_up = threading.Condition(), False, False
        self._lines: deque[str] = deque()  # from the thread; the main thread prints them
        self._failed: set[str] = set()  # slots whose newest upload has failed
        self._best, self._used, self._too_many, self._behind = "", "", False, False
        self._count = 0
        self._thread = threading.Thread(target=self._work, name="sends artifacts to W&B", daemon=True)
        self.clear()  # of a killed attempt

    def begin(self, images: int, code: bool) -> None:
        """Starts with what the server may lack: code, and checkpoints of at most `images` images."""
        self._code = code
        with suppress(OSError):
            known = [path for path in checkpoint.all_checkpoints(self._checkpoints) if int(path.name) <= images]
            for newest in known[-1:]:
                self.checkpoint(newest)
        self._thread.start()

    def checkpoint(self, path: Path) -> None:
        """Hands over a checkpoint that is complete on disk, and the best one, if --wandb.artifacts asks for them."""
        self._tell()
        if self._what == "none":
            return
        best = ""
        with suppress(OSError):
            best = checkpoint.best_name(self._checkpoints)
        if best != self._best and best and best != path.name:
            self._put("best", self._checkpoints / best, ("best",))
        if self._what == "all":
            self._put("latest", path, ("latest", "best") if best == path.name else ("latest",))
        elif best == path.name and best != self._best:
            self._put("best", path, ("best",))
        self._best = best

    def _put(self, slot: str, path: Path, aliases: tuple[str, ...]) -> None:
        self._count += 1
        links = self._folder / f"{self._count}-{path.name}"
        try:
            links.mkdir(parents=True)
            for file in path.iterdir():
                if file.suffix in (checkpoint.SUFFIX, ".json"):
                    os.link(file, links / file.name)
        except FileNotFoundError:  # already removed, so a newer one follows
            return
        except OSError:  # a file system without hard links
            links = path
        self._queue(slot, Upload(kind="checkpoint", name=path.name, folder=links, aliases=aliases))

    def _queue(self, slot: str, upload: Upload) -> None:
        with self._changed:
            older = self._waiting.pop(slot, None)
            self._waiting[slot] = upload
            self._changed.notify()
        if older is not None:
            self._remove(older)
            if not self._behind:
                self._say(f"W&B: checkpoints are saved faster than they are sent; {older.name} and others are left out")
            self._behind = True

    def finish(self, seconds: float, *, done: bool) -> bool:
        """Waits so long for the uploads; returns whether all have arrived. `done`: the run is complete."""
        if done and self._what != "none":
            try:
                self._put_generator()
            except (OSError, UserError, ValueError, KeyError) as error:
                self._failed.add("generator")
                self._say(f"WARNING: W&B: the generator is not sent: {error}")
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        self._tell()
        self._given_up = self._thread.is_alive()
        if self._given_up:
            self._say(f"WARNING: W&B: artifacts have not arrived within {seconds:.0f} s; to send them: {self._rest}")
        return not (self._given_up or self._failed)

    def _put_generator(self) -> None:
        newest = checkpoint.all_checkpoints(self._checkpoints)[-1:]
        best = checkpoint.best_name(self._checkpoints)
        source = self._checkpoints / best if best else newest[0] if newest else None
        if source is not None:
            folder = self._folder / "generator"
            export(source, folder)
            aliases = ("latest", "best") if best else ("latest",)
            self._queue("generator", Upload(kind="generator", name=source.name, folder=folder, aliases=aliases))

    def clear(self) -> None:
        """Removes the links. Only when W&B's process is gone."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove(self, upload: Upload) -> None:
        if upload.folder.parent == self._folder:
            shutil.rmtree(upload.folder, ignore_errors=True)

    def _tell(self) -> None:
        while self._lines:
            self._say(self._lines.popleft())

    # ---- in the thread

    def _work(self) -> None:
        if self._code:
            self._try("code", "the code", self._send_code)
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                slot = next(iter(self._waiting))
                upload = self._waiting.pop(slot)
            self._try(slot, f"the {upload.kind} of {upload.name}", lambda upload=upload: self._send(upload))
            self._remove(upload)

    def _try(self, slot: str, what: str, act: Callable[[], None]) -> None:
        try:
            act()
            self._failed.discard(slot)
        except Exception as error:
            self._failed.add(slot)
            reason = " ".join(str(error).split())[:300]
            self._lines.append(f"WARNING: W&B: {what} is not sent: {reason}; to send it later: {self._rest}")

    def _send_code(self) -> None:
        if made := self._run.log_code(str(PACKAGE), name="source-dcgan_dist"):
            made.wait()

    def _send(self, upload: Upload) -> None:
        import wandb

        state = checkpoint.load_state(upload.folder)  # raises for one that is damaged
        self._use_data(state)
        if self._too_many:
            self._delete_old()
        environment = dict(self._run.config.get("environment", {}))
        about = {name: environment.get(name) for name in FACTS} | {"images": state["images"]}
        about["data_fingerprint"] = state.get("data_fingerprint") or state.get("data_names")
        made = wandb.Artifact(f"{self._run.id}-{upload.kind}", "model", metadata=about)
        for name in (MANIFEST, *json.loads((upload.folder / MANIFEST).read_bytes())["files"]):
            # neither a copy before the upload nor one after it, for checkpoints may be large
            made.add_file(str(upload.folder / name), policy="immutable", skip_cache=True)
        self._run.log_artifact(made, aliases=[*upload.aliases, f"images-{state['images']}"]).wait()
        if upload.kind == "checkpoint":
            self._delete_old()

    def _use_data(self, state: dict[str, Any]) -> None:
        import wandb

        fingerprint = state.get("data_fingerprint") or state.get("data_names")
        if fingerprint and fingerprint != self._used:
            about = {"fingerprint": fingerprint, "images": state.get("data_images")}
            self._run.use_artifact(wandb.Artifact(f"data-{fingerprint[:16]}", "dataset", metadata=about))
            self._used = fingerprint

    def _delete_old(self) -> None:
        """Keeps as many versions as the folder has. Raises when the server refuses; then no more are sent."""
        import wandb

        self._too_many = True
        place = f"{self._run.entity}/{self._run.project}/{self._run.id}-checkpoint"
        found = wandb.Api(overrides={"entity": self._run.entity}).artifacts("model", place)
        versions = sorted(found, key=lambda one: int(one.version.removeprefix("v")), reverse=True)
        for old in versions[self._keep :]:
            if "best" not in old.aliases:
                old.delete(delete_aliases=True)
        self._too_many = False


def open_artifacts(start: "Start", run: "wandb.Run", rest: str, *, again: bool) -> Artifacts | None:
    """The uploads that the options ask for; None: none. `again`: `dcgan-dist wandb sync`, whose code may be newer."""
    config = start.config.wandb
    code = "code" in config.share and not again
    if config.artifacts == "none" and not code:
        return None
    if run.offline:
        start.say(f"W&B: offline: {_offline(config)}")
        return None
    artifacts = Artifacts(start, run, rest)
    artifacts.begin(start.images, code)
    return artifacts


def _offline(config: WandbConfig) -> str:
    if config.artifacts == "none":
        return "the code is not sent"
    newest = "the newest and the best checkpoint" if config.artifacts == "all" else "the best checkpoint"
    code = "; the code is not sent" if "code" in config.share else ""
    return f"no artifacts are kept; `dcgan-dist wandb sync` sends {newest} and, of a complete run, the generator{code}"
