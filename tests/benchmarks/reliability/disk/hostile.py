"""Gives hostile bundles and names to the commands: nothing outside of their folders changes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.signing import make_keys
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.reliability.disk.hostile_bundles import ANYHOW, REFUSED, VICTIM, Case
from tests.benchmarks.reliability.disk.writers import ROOT, hybrid_deploy
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import workshop

_COMMANDS = (
    "inspect source.bundle",
    "quantize source.bundle --precision fp16 --force",
    "sign source.bundle --key key",
    "install source.bundle --into slots",
)
_REFUSALS = (1, 2)
_LIMIT_SECONDS = 60.0
_NAIVE = (sys.executable, str(ROOT / "tests/benchmarks/reliability/disk/naive_install.py"))
_CHANGED = "changed"
_CONTROL = "a path with .."

State = dict[str, tuple[int, ...]]
"""What the system knows of every file below a folder, by its path."""


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Gives hostile bundles and slots to every command that opens or writes a bundle.

    Args:
        count: number of scenes; more than there are runs each of them once.
        seed: seed of the choice among them.
        bundle: a small bundle to change; None exports one.
    """
    began = time.perf_counter()
    cases = {**REFUSED, **ANYHOW}
    chosen = random.Random(seed).sample(list(cases), min(count, len(cases)))
    with workshop(bundle) as (original, scratch):
        faults = [
            f"{name}: {fault}"
            for name in chosen
            for fault in _faults(original, scratch, cases[name], name in REFUSED)
        ]
        naive = (*_NAIVE, "source.bundle", "slots")
        noticed = list(_faults(original, scratch, REFUSED[_CONTROL], True, (naive,)))
    return Row(
        name="hostile bundles, names, links and leftovers, for inspect, quantize, sign, install",
        count=len(chosen),
        result=f"{len(faults)} changed something outside, were accepted, or took more than a line",
        faults=tuple(faults),
        control="an install that believes the paths of a manifest",
        caught=any(f"{_CHANGED} outside" in fault for fault in noticed),
        seconds=time.perf_counter() - began,
    )


def _faults(
    original: Path,
    scratch: Path,
    case: Case,
    is_refused: bool,
    commands: Sequence[Sequence[str]] = tuple(map(hybrid_deploy, _COMMANDS)),
) -> Iterator[str]:
    """Yields what goes wrong in one scene."""
    scene = _scene(original, scratch)
    case(scene)
    guarded = ["outside", "source.bundle"] if is_refused else ["outside"]
    names = set(os.listdir(scene))
    for command in commands:
        before = {name: _state(scene / name) for name in guarded}
        fault = _run_fault(command, scene, is_refused)
        if fault is not None:
            yield f"{' '.join(command[3:])}: {fault}"
        for name, state in before.items():
            if changed := {path for path, _ in state.items() ^ _state(scene / name).items()}:
                yield f"{' '.join(command[2:])} {_CHANGED} {name}: {sorted(changed)}"
    if more := set(os.listdir(scene)) - names - {"cache"}:
        yield f"left behind: {sorted(more)}"
    if (scene / "slots" / "current" / "manifest.json").exists():
        try:
            open_bundle(scene / "slots" / "current")
        except HybridDeployError as error:
            yield f"the installed bundle is no good: {error}"
    shutil.rmtree(scene)


def _scene(original: Path, scratch: Path) -> Path:
    """Makes a folder with a bundle, slots, a key and a folder outside of all of them."""
    # of a new name each time: what rewrites a file of the last scene must not find this one's
    scene = Path(tempfile.mkdtemp(prefix="scene-", dir=scratch))
    (scene / "slots").mkdir()
    shutil.copytree(original, scene / "source.bundle")
    (scene / "outside").mkdir()
    shutil.copy(original / "fp32" / "step.onnx", scene / "outside" / VICTIM)
    make_keys(scene / "key")
    return scene


def _run_fault(command: Sequence[str], scene: Path, is_refused: bool) -> str | None:
    """Returns what is wrong with the end of a command; None if it ends well."""
    variables = {"PYTHONPATH": str(ROOT), CACHE_VARIABLE: str(scene / "cache")}
    try:
        done = subprocess.run(
            command,
            cwd=scene,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_LIMIT_SECONDS:.0f} s"
    if done.returncode == 0:
        return "it was accepted" if is_refused else None
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode not in _REFUSALS or "failed unexpectedly" in done.stderr or len(lines) != 1:
        return f"it ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    return None


def _state(folder: Path) -> State:
    """Returns mode, size, inode and times of everything below a folder, links not followed."""
    state: State = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        s = os.lstat(path)
        state[path.relative_to(folder).as_posix()] = (
            s.st_mode,
            s.st_size,
            s.st_ino,
            s.st_mtime_ns,
            s.st_ctime_ns,
        )
    return state
