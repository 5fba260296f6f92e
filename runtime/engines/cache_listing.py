"""Lists the engines of the cache folder and deletes engines from it."""

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
    """One engine of the cache, listed without reading its plan: the hash is not checked.

    Attributes:
        key: key of the engine, the name of its folder.
        record: record of the engine; None if it cannot be read.
        size_bytes: size of the plan and the record together.
        built_at: time of the build, in seconds since 1970.
        used_at: time of the last use, in seconds since 1970.
        damage: damage that the file sizes show; None if they show none.
    """

    key: str
    record: PlanRecord | None
    size_bytes: int
    built_at: float
    used_at: float
    damage: str | None


@dataclass(frozen=True)
class Deletion:
    """The result of a deletion.

    Attributes:
        deleted: engines that were deleted.
        in_use: engines that stay, because another process holds their lock.
    """

    deleted: tuple[CachedEngine, ...]
    in_use: tuple[CachedEngine, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all deleted engines."""
        return sum(engine.size_bytes for engine in self.deleted)


def list_engines(cache: EngineCache) -> list[CachedEngine]:
    """Returns all engines of a cache, the last used first; none if the folder is absent."""
    entries = cache.folder.glob("*") if cache.folder.is_dir() else ()
    engines = [_engine(entry) for entry in entries if _KEY.match(entry.name) and entry.is_dir()]
    return sorted(engines, key=lambda engine: (-engine.used_at, engine.key))


def last_build(cache: EngineCache, shaped_by: dict[str, object]) -> PlanRecord | None:
    """Returns the record of the newest engine of the same graph and target; None if there is none.

    Versions, options and optimization profiles may differ.
    """
    builds = [
        (engine.built_at, engine.record)
        for engine in list_engines(cache)
        if engine.record is not None
        and all(engine.record.shaped_by.get(k) == shaped_by[k] for k in ("graph", "target"))
    ]
    return max(builds, key=lambda build: build[0])[1] if builds else None


def compatible_build(cache: EngineCache, shaped_by: dict[str, object]) -> dict[str, object] | None:
    """Returns the `shaped_by` of a version-compatible engine that an older TensorRT built.

    It differs from the given `shaped_by` in the version only, and its plan is undamaged. None if
    there is no such engine.
    """
    version = str(shaped_by["version"])
    for engine in list_engines(cache):
        older = engine.record.shaped_by if engine.record else {}
        if older | {"version": version} == shaped_by and version_mismatch(older, version) is None:
            try:
                read_plan(cache.folder / engine.key / PLAN_FILE)
            except BuildError:
                continue
            return older
    return None


def delete_engines(cache: EngineCache, engines: Iterable[CachedEngine]) -> Deletion:
    """Deletes engines, except those whose lock another process holds."""
    deleted, in_use = [], []
    for engine in engines:
        try:
            with cache.locked(engine.key, wait=False):
                # Renamed first, so that an interrupt leaves a leftover and not half an engine.
                doomed = cache.folder / f".{engine.key}.deleted"
                if (cache.folder / engine.key).exists():
                    (cache.folder / engine.key).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            deleted.append(engine)
        except Timeout:
            in_use.append(engine)
    return Deletion(tuple(deleted), tuple(in_use))


def delete_leftovers(cache: EngineCache) -> None:
    """Deletes the temporary folders of builds and deletions that were killed."""
    for path in cache.folder.glob(".*") if cache.folder.is_dir() else ():
        if match := _LEFTOVER.match(path.name):
            try:
                with cache.locked(match["key"], wait=False):
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
    """Returns a file's size in bytes and time stamp; zeros if the file is absent."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0.0
    return status.st_size, status.st_mtime
