"""The commands that write to disk, what a reader finds after them, and where each one starts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.signature import Trust, signatures_of
from hybrid_deploy.bundle.signing import make_keys, sign
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.calibration.statistics.scales import read_scales
from hybrid_deploy.labels import LABELS_FILE
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, EngineCache, read_plan
from hybrid_deploy.runtime.engines.cache_listing import list_engines
from tests.benchmarks.reliability.disk.faults import Ended, Kind, Striker, compile_library

ROOT = Path(__file__).parents[4]
_PROGRAM = (sys.executable, "-m", "hybrid_deploy")
_NUMBER = re.compile(r"\d{4}(?=/|$)|[0-9a-f]{64}")  # of a release, of an engine
_HOME = re.compile(r"-\d+(?=/|$)")  # of the folder of a variant that was written again
_TARGET = "rtx:sm_86"
_NEW, _OLD = 7, 3  # versions of signatures


@dataclass(frozen=True)
class Writer:
    """A command that writes to disk.

    Attributes:
        name: name of the command.
        command: program and arguments.
        found: returns what a reader finds in the folder of the command, as a text that differs
            before and after it; it raises an exception for anything that is damaged.
        following: the next command that writes to the same place.
        share: its part of all trials, relative to the other commands.
        kills_between: how often it is killed before it runs to its end, which has to remove what
            was left.
    """

    name: str
    command: tuple[str, ...]
    found: Callable[[Path], str]
    following: tuple[str, ...]
    share: int
    kills_between: int = 4


class WorkFolder:
    """A folder with bundles, keys, scales and installed bundles, which every trial may have anew.

    Args:
        folder: folder for all of it.
        bundle: a small bundle to start with.
    """

    def __init__(self, folder: Path, bundle: Path) -> None:
        folder = folder.resolve()
        self._pristine, self.work = folder / "pristine", folder / "work"
        variables = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.work / "temporary"),
            CACHE_VARIABLE: str(self.work / "cache"),
            # PyTorch makes a cache of its own in the temporary folder when it traces a model
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "cache" / "torchinductor"),
        }
        environment = os.environ | variables
        self.striker = Striker(compile_library(folder), self.work, environment)
        self._make_originals(bundle)

    def renew(self) -> None:
        """Brings the folder back to what it was."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._pristine, self.work, symlinks=True)

    def names(self) -> list[str]:
        """Returns the path of everything in the folder, with the same text for all numbers."""
        names = (path.relative_to(self.work).as_posix() for path in self.work.rglob("*"))
        same = (_HOME.sub("", _NUMBER.sub("#", name)) for name in names if not _is_hash(name))
        return sorted(same)

    def run(self, command: Sequence[str], kind: Kind = "kill") -> Ended:
        """Runs a command to its end; counted are the calls that a `kind` of fault can strike at.

        Raises:
            RuntimeError: it fails, although nothing disturbs it.
        """
        done = self.striker.run(command, kind)
        if done.code:
            raise RuntimeError(f"{' '.join(command[1:])} ended with {done.code}: {done.stderr}")
        return done

    def _make_originals(self, bundle: Path) -> None:
        """Makes a bundle, its keys and scales, and slots in which two others are installed."""
        (self.work / "temporary").mkdir(parents=True)
        original = self.work / "a.bundle"
        shutil.copytree(bundle, original)
        make_keys(self.work / "key")
        self.run(hybrid_deploy("calibrate a.bundle --golden --method percentile -o scales.json"))
        for number in (1, 2):
            earlier = Path(shutil.copytree(original, self.work / "earlier.bundle"))
            manifest = open_bundle(earlier).manifest
            seal_bundle(earlier, msgspec.structs.replace(manifest, name=f"release {number}"))
            sign(earlier, self.work / "key", _OLD)  # every release has the same files
            self.run(hybrid_deploy("install earlier.bundle --into slots"))
            shutil.rmtree(earlier)
        sign(original, self.work / "key", _OLD)
        _make_samples(original, self.work / "samples")
        shutil.rmtree(self.work / "cache")
        self.work.rename(self._pristine)


def writers() -> list[Writer]:
    """Returns every command that writes to disk."""
    install = "install a.bundle --into slots"
    return [
        _writer("export tests.conftest:job -o a.bundle --name newer --force", _exported, 2),
        _writer("quantize a.bundle --precision fp16 --force", _variants, 4),
        _writer("calibrate a.bundle --golden -o scales.json --force", _scales, 3),
        _writer(f"build a.bundle --target {_TARGET} --variant fp32", _engines, 4),
        _writer(f"sign a.bundle --key key --version {_NEW}", _signed, 2),
        _writer(install, _installed, 6),
        replace(_writer("rollback slots", _installed, 2, following=install), kills_between=1),
    ]


def key_maker() -> Writer:
    """Returns `keygen`, which replaces nothing: half a key must not stay."""
    return _writer("keygen other", _keys, 1)


def shares(parts: Sequence[int], total: int) -> list[int]:
    """Returns how a total is divided: in proportion to the parts, by largest remainders."""
    exact = [part * total / sum(parts) for part in parts]
    counts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda index: counts[index] - exact[index])
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _writer(
    arguments: str, found: Callable[[Path], str], share: int, following: str | None = None
) -> Writer:
    name = arguments.split()[0]
    after = hybrid_deploy(following or arguments)
    return Writer(name, hybrid_deploy(arguments), found, after, share)


def hybrid_deploy(arguments: str) -> tuple[str, ...]:
    """Returns the command line of hybrid-deploy with arguments."""
    return (*_PROGRAM, *arguments.split())


def _make_samples(bundle: Path, folder: Path) -> None:
    """Makes a folder of one labelled picture, the bundle's golden sample."""
    folder.mkdir()
    shutil.copy(bundle / "golden" / "page.png", folder)
    (folder / LABELS_FILE).write_text("file,text\npage.png,a\n", encoding="utf-8")


def _is_hash(name: str) -> bool:
    """Returns whether a path is one of the remembered hashes, which are written now and then."""
    return name.startswith("cache/hashes") and not Path(name).name.startswith(".")


def _exported(folder: Path) -> str:
    return open_bundle(folder / "a.bundle").manifest.name


def _variants(folder: Path) -> str:
    return " ".join(open_bundle(folder / "a.bundle").manifest.variants)


def _scales(folder: Path) -> str:
    read_scales(folder / "scales.json")
    return hashlib.sha256((folder / "scales.json").read_bytes()).hexdigest()


def _engines(folder: Path) -> str:
    """Reads every engine that is there; a missing one is as good as not built yet."""
    cache = EngineCache(folder / "cache" / "engines")
    for engine in list_engines(cache):
        read_plan(cache.folder / engine.key / PLAN_FILE)
    return "engines"


def _signed(folder: Path) -> str:
    open_bundle(folder / "a.bundle", trust=Trust((folder / "key.pub",)))
    return " ".join(str(signature.version) for signature in signatures_of(folder / "a.bundle"))


def _keys(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("other*"))
    for name in names:
        if not (folder / name).read_bytes().endswith(b"KEY-----\n"):
            raise ValueError(f"{name} is no whole key")
    return " ".join(names)


def _installed(folder: Path) -> str:
    return open_bundle(folder / "slots" / "current").manifest.name
