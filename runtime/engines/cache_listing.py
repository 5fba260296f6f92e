"""What lies in the folder of built engines: listing it and deleting from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from hybrid_deploy.errors import BuildError
from hybrid_deploy.runtime.engines.cache import (
    PLAN_FILE,
    RECORD_FILE,
    EngineCache,
    PlanRecord,
    read_plan,
    read_record,
)
from hybrid_deploy.runtime.engines.compatibility import version_mismatch

_KEY = re.compile(r"^[0-9a-f]{64}$")
_LEFTOVER = re.compile(r"^\.(?P<key>[0-9a-f]{64})\.")


@dataclass(frozen=True)
class CachedEngine:
    """One engine of the cache; its plan is not read, so its hash is not checked.

    Attributes:
        key: SHA-256 of what shaped it, the name of its folder.
        record: What is known of it; None where that cannot be read.
        size_bytes: All its files.
        built_at: When it was built, in seconds since 1970.
        used_at: When it was last used, likewise.
        damage: What is wrong with it, as far as sizes tell; None where nothing is.
    """

    key: str
    record: PlanRecord | None
    size_bytes: int
    built_at: float
    used_at: float
    damage: str | None


@dataclass(frozen=True)
class Deletion:
    """What was deleted, and what was kept because another process holds it."""

    deleted: tuple[CachedEngine, ...]
    in_use: tuple[CachedEngine, ...]

    @property
    def size_bytes(self) -> int:
        """How much was deleted."""
        return sum(engine.size_bytes for engine in self.deleted)


def list_engines(cache: EngineCache) -> list[CachedEngine]:
    """Returns all engines of a cache, the last used first; a folder that is not there has none."""
    entries = cache.folder.glob("*") if cache.folder.is_dir() else ()
    engines = [_engine(entry) for entry in entries if _KEY.match(entry.name) and entry.is_dir()]
    return sorted(engines, key=lambda engine: (-engine.used_at, engine.key))


def last_build(cache: EngineCache, shaped_by: dict[str, object]) -> PlanRecord | None:
    """Returns the newest engine of the same graph and target, whatever else it was built with."""
    found = [
        (engine.built_at, engine.record)
        for engine in list_engines(cache)
        if engine.record is not None
        and all(engine.record.shaped_by.get(k) == shaped_by[k] for k in ("graph", "target"))
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def compatible_build(cache: EngineCache, shaped_by: dict[str, object]) -> dict[str, object] | None:
    """Returns what shaped a sound version-compatible engine that an older TensorRT built.

    It differs from what is asked for in nothing but that version. None if there is none.
    """
    version = str(shaped_by["version"])
    for engine in list_engines(cache):
        known = engine.record.shaped_by if engine.record else {}
        if known | {"version": version} == shaped_by and version_mismatch(known, version) is None:
            try:
                read_plan(cache.folder / engine.key / PLAN_FILE)
            except BuildError:
                continue
            return known
    return None


def delete_engines(cache: EngineCache, engines: Iterable[CachedEngine]) -> Deletion:
    """Deletes engines, but none that another process builds or reads at this moment."""
    deleted, in_use = [], []
    for engine in engines:
        try:
            with cache.locked(engine.key, wait=False):
                # Renamed first: what an interrupt leaves is then a leftover, not half an engine.
                doomed = cache.folder / f".{engine.key}.deleted"
                if (cache.folder / engine.key).exists():
                    (cache.folder / engine.key).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            deleted.append(engine)
        except Timeout:
            in_use.append(engine)
    return Deletion(tuple(deleted), tuple(in_use))


def delete_leftovers(cache: EngineCache) -> None:
    """Deletes what killed builds left behind."""
    for path in cache.folder.glob(".*") if cache.folder.is_dir() else ():
        if found := _LEFTOVER.match(path.name):
            try:
                with cache.locked(found["key"], wait=False):
                    shutil.rmtree(path, ignore_errors=True)
            except Timeout:
                continue


def _engine(entry: Path) -> CachedEngine:
    plan_size, built_at = _stat(entry / PLAN_FILE)
    record_size, used_at = _stat(entry / RECORD_FILE)
    try:
        record, damage = read_record(entry), None
        if plan_size != record.size_bytes:
            damage = f"{plan_size} of {record.size_bytes} bytes"
    except BuildError:
        record, damage = None, "no record"
    size_bytes = plan_size + record_size
    return CachedEngine(entry.name, record, size_bytes, built_at, used_at or built_at, damage)


def _stat(path: Path) -> tuple[int, float]:
    """Returns size in bytes and time of change; zeros where another process just deleted it."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0.0
    return status.st_size, status.st_mtime
