"""The bundle that the checks damage: a tiny reader with a golden picture."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_EXPORT = """
import sys
from pathlib import Path
from hybrid_deploy.export.exporter import run_export
from tests.conftest import job
run_export(job(), Path(sys.argv[1]))
"""


@contextmanager
def workshop(bundle: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yields a bundle, and an empty folder that is deleted at the end.

    Args:
        bundle: bundle to take; None exports the tiny one, in a process of its own.
    """
    with TemporaryDirectory(prefix="reliability-") as name:
        folder = Path(name)
        if bundle is None:
            bundle = folder / "tiny.bundle"
            subprocess.run([sys.executable, "-c", _EXPORT, str(bundle)], check=True)
        scratch = folder / "scratch"
        scratch.mkdir()
        yield bundle, scratch


def copy_of(bundle: Path, folder: Path) -> Path:
    """Returns the path of a copy of a bundle, in a folder."""
    return Path(shutil.copytree(bundle, folder / "changed.bundle"))


def manifest_of(bundle: Path) -> dict[str, Any]:
    """Returns the manifest of a bundle as plain values."""
    sealed: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    manifest: dict[str, Any] = sealed["manifest"]
    return manifest


def sealed(body: bytes) -> bytes:
    """Returns the bytes of a `manifest.json` with a manifest and the seal that fits it."""
    seal = hashlib.sha256(body).hexdigest()
    return b'{"seal": "' + seal.encode() + b'", "manifest": ' + body + b"}\n"


def record_of(content: bytes) -> dict[str, Any]:
    """Returns the record of a file in a manifest."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
