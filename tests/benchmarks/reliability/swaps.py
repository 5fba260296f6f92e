"""Swaps the files of a bundle while it is loaded: the text is that of its manifest, or an error.

Another process exchanges every file of the bundle for the one of another bundle, and back, without
a pause. It renames the other file to the place, or writes into the file, and sets the times back.
The other bundle is the same model with other weights, so that a mixture would load and decode.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import msgspec

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import Manifest
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.runtime.backends.registry import BackendOptions, load_backend
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.reliability.row import Row
from tests.conftest import make_tiny, tiny_job
from tests.fakes.session_answers import Answers, answers

Load = Callable[[Path], Session]
"""Loads the bundle of a folder."""

NAME = "files swapped during load"
CONTROL = "a loader that hashes every file by its path, then loads it by its path"

_ROOT = Path(__file__).parents[3]
_REFUSED, _OTHER = "refused", "another text"
_LARGEST_CONTROL = 400


def check(count: int, seed: int) -> Row:
    """Loads a bundle again and again while its files are swapped.

    Args:
        count: number of loads.
        seed: seed of the swaps.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        with mock.patch.dict(os.environ, {CACHE_VARIABLE: str(Path(folder, "cache"))}):
            bundles = make_bundles(Path(folder))
            outcomes, caught = _measure(bundles, count, seed)
    faults = tuple(f"seed {seed}: load {i}: {o}" for i, o in enumerate(outcomes) if _OTHER in o)
    refused = outcomes.count(_REFUSED)
    right = count - refused - len(faults)
    result = f"{right:,} with their text, {refused:,} refused, {len(faults):,} with another text"
    return Row(NAME, count, result, faults, CONTROL, caught, time.perf_counter() - began)


def make_bundles(folder: Path) -> tuple[Path, Path]:
    """Exports two bundles of the same model with different weights."""
    paths = folder / "one.bundle", folder / "other.bundle"
    for seed, path in enumerate(paths):
        run_export(tiny_job(make_tiny(seed)), path)
    return paths


def _measure(bundles: tuple[Path, Path], count: int, seed: int) -> tuple[list[str], bool]:
    """Returns the outcome of every load, and whether the control was caught."""
    known = [(session.bundle.manifest, answers(session)) for session in map(load_session, bundles)]
    assert known[0][1] != known[1][1], "the bundles must have different texts"
    with swapping(*bundles, seed):
        outcomes = [outcome(bundles[0], load_session, known) for _ in range(count)]
        control = (outcome(bundles[0], load_by_path, known) for _ in range(_LARGEST_CONTROL))
        return outcomes, any(_OTHER in each for each in control)


def outcome(path: Path, load: Load, known: Sequence[tuple[Manifest, Answers]]) -> str:
    """Returns what became of one load; a session must answer as the bundle of its manifest."""
    try:
        session = load(path)
        texts = answers(session)
    except HybridDeployError:
        return _REFUSED
    if (session.bundle.manifest, texts) in known:
        return "its text"
    return f"{_OTHER}: {texts}"


def load_by_path(path: Path) -> Session:
    """Loads a bundle from the paths of its files, after every file was hashed."""
    bundle = open_bundle(path)
    unlisted = Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files={}))
    backend = load_backend("onnxruntime", unlisted, "fp32", BackendOptions(threads=1))
    return Session(bundle, "fp32", backend)


@contextmanager
def swapping(bundle: Path, other: Path, seed: int) -> Iterator[None]:
    """Lets another process swap the files of a bundle as long as the block runs."""
    command = [sys.executable, "-m", "tests.benchmarks.reliability.swapper"]
    with subprocess.Popen(
        [*command, str(bundle), str(other), str(seed)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the swapper must start"
        try:
            yield
            assert process.poll() is None, "the files must be swapped to the end"
        finally:
            process.stdin.close()
