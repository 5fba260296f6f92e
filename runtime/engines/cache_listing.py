"""Lists the engines of the cache folder and deletes engines from it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from hybrid_deploy.errors import BuildError, InputError
from hybrid_deploy.runtime.engines.cache import (
    PLAN_FILE,
    RECORD_FILE,
    EngineCache,
    PlanRecord,
    other_files,
    read_plan,
    read_record,
)
from hybrid_deploy.runtime.engines.compatibility import version_mismatch
from hybrid_deploy.temporary_folders import remove_if_dead
from hybrid_deploy.temporary_names import is_temporary_name, temporary_name

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
        kept: folders that stay, because of what else is in them, each with the reason.
    """

    deleted: tuple[CachedEngine, ...]
    in_use: tuple[CachedEngine, ...]
    kept: tuple[tuple[Path, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of all deleted engines."""
        return sum(engine.size_bytes for engine in self.deleted)


def list_engines(cache: EngineCache) -> list[CachedEngine]:
    """Returns all engines of a cache, the last used first; none if the folder is absent.

    A folder without a plan and a record is none, and neither is a link, whatever its name.
    """
    entries = cache.folder.glob("*") if cache.folder.is_dir() else ()
    engines = [_engine(entry) for entry in entries if _is_entry(entry)]
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
    """Deletes engines, except those whose lock another process holds.

    Only the plan and the record are deleted, so a folder that holds something else stays whole.
    """
    deleted, in_use, kept = [], [], []
    for engine in engines:
        entry = cache.folder / engine.key
        try:
            with cache.locked(engine.key, wait=False):
                _delete(entry)
            deleted.append(engine)
        except Timeout:
            in_use.append(engine)
        except FileNotFoundError:  # another process has deleted it
            deleted.append(engine)
        except OSError as error:
            kept.append((entry, f"it cannot be deleted ({error.strerror})"))
        except InputError as error:
            kept.append((entry, str(error)))
    return Deletion(tuple(deleted), tuple(in_use), tuple(kept))


def _delete(entry: Path) -> None:
    """Deletes an engine, under another name first, so that a kill leaves no half of one.

    Raises:
        InputError: its folder holds something else, and has its name and content still.
        OSError: the system refuses it.
    """
    if others := other_files(entry):
        raise InputError(f"it also holds {others[0]}")
    doomed = entry.with_name(temporary_name(entry.name, "retired"))
    entry.rename(doomed)
    for name in (PLAN_FILE, RECORD_FILE):
        (doomed / name).unlink(missing_ok=True)
    try:
        doomed.rmdir()
    except OSError:  # something was put there meanwhile
        doomed.rename(entry)
        raise


def delete_leftovers(cache: EngineCache) -> int:
    """Deletes the temporary folders of builds and deletions that were killed.

    Returns:
        The number of deleted folders.
    """
    count = 0
    for path in cache.folder.glob(".*") if cache.folder.is_dir() else ():
        match = _LEFTOVER.match(path.name)
        if match and is_temporary_name(path.name, match["key"]) and path.is_dir():
            with suppress(Timeout), cache.locked(match["key"], wait=False):
                remove_if_dead(path, is_sole_writer=True)
                count += not os.path.lexists(path)
    return count


def _is_entry(path: Path) -> bool:
    """Returns whether a path is the folder of an engine, perhaps of a damaged one."""
    is_folder = bool(_KEY.match(path.name)) and path.is_dir() and not path.is_symlink()
    return is_folder and any(os.path.lexists(path / name) for name in (PLAN_FILE, RECORD_FILE))


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
