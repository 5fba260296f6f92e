"""The wheel, and clean environments that hold it and nothing of ours besides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
_VERSIONS = range(10, 15)


def build_wheel(folder: Path) -> Path:
    """Builds the wheel from a copy of the tree, so that no earlier build's leftovers get in.

    Raises:
        RuntimeError: the build failed.
    """
    skipped = shutil.ignore_patterns(".*", "build", "dist", "quickstart", "*.egg-info")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(shutil.copytree(ROOT, Path(scratch, "tree"), symlinks=True, ignore=skipped))
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, tree)
    (path,) = folder.glob("*.whl")
    return path


def make_environment(python: Path, folder: Path, *requirements: str) -> Path:
    """Makes a virtual environment and gives the Python in it.

    Raises:
        RuntimeError: pip failed.
    """
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    run(inside, "-m", "pip", "install", "--quiet", *requirements)
    return inside


def pythons() -> Iterator[Path]:
    """Finds the Pythons on the path that this package is for."""
    for minor in _VERSIONS:
        found = shutil.which(f"python3.{minor}")
        if found is not None and _starts(found):
            yield Path(found)


def run(*command: str | Path) -> str:
    """Runs a command without this process's own packages in sight, and gives what it printed.

    Raises:
        RuntimeError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{_shown(command)} failed: {done.stderr}")
    return done.stdout


def _starts(python: str) -> bool:
    """Returns whether it is more than a name: version managers leave such."""
    return subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))
