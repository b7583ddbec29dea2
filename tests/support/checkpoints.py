"""Checkpoints that are changed by hand."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def rewrite_manifest(path: Path, change: Callable[[dict], object]) -> None:
    """As somebody would who knows the format: sizes and checksums are right again, the manifest's own too."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest["files"])
    for name, about in manifest["files"].items():
        data = (path / name).read_bytes()
        about |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2))
