"""The versions of the rivals' packages, as their own interpreter tells them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hybrid_deploy.errors import InputError

PACKAGES = ("ctranslate2", "soundfile", "tokenizers", "torch", "transformers")
_REQUIREMENTS = "tests/benchmarks/real/requirements.txt"
_CODE = (
    "import importlib.metadata as m, sys; "
    "print(', '.join(f'{name} {m.version(name)}' for name in sys.argv[1:]))"
)


def read(python: Path) -> str:
    """Returns the packages with their versions.

    Raises:
        InputError: the interpreter does not run, or lacks a package.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", _CODE, *PACKAGES], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise InputError(f"{python} does not run: {error.strerror}") from error
    if done.returncode != 0:
        raise InputError(
            f"{python} lacks packages of the rivals ({done.stderr.strip().splitlines()[-1]}); "
            f"install {_REQUIREMENTS} there"
        )
    return done.stdout.strip()
