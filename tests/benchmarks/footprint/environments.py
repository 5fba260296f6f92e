"""Builds the wheel and clean virtual environments for it."""

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
    """Builds the wheel from a copy of the sources, without files of earlier builds, and returns it.

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
    """Creates a virtual environment and returns the path of its Python.

    Args:
        python: interpreter that creates it.
        folder: folder of the new environment.
        requirements: arguments of `pip install`.

    Raises:
        RuntimeError: venv or pip failed.
    """
    run(python, "-m", "venv", folder)
    interpreter = folder / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", *requirements)
    return interpreter


def pythons() -> Iterator[Path]:
    """Yields the supported Python interpreters on the path."""
    for minor in _VERSIONS:
        path = shutil.which(f"python3.{minor}")
        if path is not None and _is_installed(path):
            yield Path(path)


def run(*command: str | Path) -> str:
    """Runs a command without PYTHONPATH and returns its standard output.

    Raises:
        RuntimeError: the command failed; the message has its standard error.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    completed = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        raise RuntimeError(f"{_command_text(command)} failed: {completed.stderr}")
    return completed.stdout


def _is_installed(python: str) -> bool:
    """Returns whether the interpreter starts: version managers leave commands that do not."""
    return subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0


def _command_text(command: Sequence[str | Path]) -> str:
    return " ".join(map(str, command))
