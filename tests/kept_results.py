"""Results that a later run may use again: one file for each, with what made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

ROOT = Path(__file__).parents[1]
PRODUCT = ("hybrid_deploy", "export", "calibration", "runtime")
"""Folders of the package."""

_SUFFIXES = (".py", ".c")

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """What a result depends on: results of two runs stand in one table only if this is equal.

    Attributes:
        sources: SHA-256 of the sources that made it.
        machine: processor, number of cores and Python version.
        packages: packages with their versions.
    """

    sources: str
    machine: str
    packages: str


@dataclass(frozen=True)
class Dated(Generic[T]):
    """A result and the day of its check, as `2026-11-28`."""

    result: T
    day: str


def today(result: T) -> Dated[T]:
    """Returns a result with today's day."""
    return Dated(result, time.strftime("%Y-%m-%d"))


class KeptResults(Generic[T]):
    """A folder of results; those of another origin are as good as missing.

    Args:
        folder: folder of the files; None keeps nothing.
        origin: origin of the results of this run.
        kind: dataclass of a result.
    """

    def __init__(self, folder: Path | None, origin: Origin, kind: type[T]) -> None:
        self._folder, self._origin, self._kind = folder, msgspec.json.encode(origin), kind

    def load(self, name: str) -> Dated[T] | None:
        """Returns the kept result of that name; None if there is none of this origin."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        kept = msgspec.json.decode(path.read_bytes())
        if kept["origin"] != msgspec.json.decode(self._origin):
            return None
        result = msgspec.json.decode(msgspec.json.encode(kept["result"]), type=self._kind)
        return Dated(result, kept["day"])

    def keep(self, name: str, result: T) -> Dated[T]:
        """Writes a result of today, and returns it."""
        dated = today(result)
        path = self._path(name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"origin": msgspec.Raw(self._origin), "result": result, "day": dated.day}
            path.write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
        return dated

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.json"


def origin_of(sources: Sequence[str], packages: Sequence[str]) -> Origin:
    """Returns the origin of results that are made here and now.

    Args:
        sources: files and folders of the repository that a result depends on.
        packages: names of packages that it depends on; those that are not installed are left out.
    """
    versions = ", ".join(f"{name} {v}" for name in packages if (v := _version(name)))
    machine = f"{_cpu()}, Python {platform.python_version()}"
    return Origin(_digest([ROOT / source for source in sources]), machine, versions)


def _digest(tops: Sequence[Path]) -> str:
    """Returns the SHA-256 of all source files, with their paths."""
    digest = hashlib.sha256()
    for path in sorted({path for top in tops for path in (top, *top.rglob("*"))}):
        if path.suffix in _SUFFIXES:
            content = path.read_bytes()
            digest.update(
                f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content
            )
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()
