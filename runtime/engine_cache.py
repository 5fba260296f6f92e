"""A folder of built engines: each is found by what shaped it, and used only while its hash holds.

<folder>/<key>/engine.plan   the serialized engine
<folder>/<key>/record.json   its SHA-256, size and build time, and what shaped it
<folder>/<key>.lock          held by the one process that builds it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock

from hybrid_deploy.atomic import staged_folder
from hybrid_deploy.cache import CACHE_VARIABLE, cache_folder
from hybrid_deploy.errors import BuildError, InputError

PLAN_FILE = "engine.plan"
RECORD_FILE = "record.json"


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a plan; `shaped_by` is what its key is the hash of."""

    sha256: str
    size_bytes: int
    build_seconds: float
    shaped_by: dict[str, object]


@dataclass(frozen=True)
class BuiltPlan:
    """A new plan, and how long building it took."""

    plan: bytes
    seconds: float


@dataclass(frozen=True)
class CachedPlan:
    """A plan on disk, and whether it was there already."""

    path: Path
    record: PlanRecord
    from_cache: bool


class EngineCache:
    """Engines that this machine built.

    Deserializing an engine runs its native code, so the folder belongs to its user alone: never
    copy another machine's engines into it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Uses `folder`, or `engines` in $HYBRID_DEPLOY_CACHE or ~/.cache/hybrid_deploy."""
        self.folder = folder or cache_folder("engines")

    def get_or_build(
        self,
        shaped_by: dict[str, object],
        build: Callable[[], BuiltPlan],
        on_damage: Callable[[str], None] | None = None,
    ) -> CachedPlan:
        """Gives the engine that `shaped_by` describes, building it where there is no sound one.

        Processes that ask for one engine at the same time wait for the first to build it.

        Args:
            shaped_by: Everything that the engine depends on, as JSON types.
            build: Builds the plan; called at most once.
            on_damage: Is told why an engine that was there is built anew.

        Raises:
            InputError: the folder cannot be used.
        """
        key = engine_key(shaped_by)
        entry = self.folder / key
        with self._locked(key):
            if entry.exists():
                try:
                    record, _ = _read_entry(entry)
                    return CachedPlan(entry / PLAN_FILE, record, from_cache=True)
                except BuildError as error:
                    if on_damage is not None:
                        on_damage(f"{error}; building it again")
            built = build()
            record = PlanRecord(
                sha256=hashlib.sha256(built.plan).hexdigest(),
                size_bytes=len(built.plan),
                build_seconds=built.seconds,
                shaped_by=shaped_by,
            )
            _write_entry(entry, built.plan, record)
        return CachedPlan(entry / PLAN_FILE, record, from_cache=False)

    def _locked(self, key: str) -> AbstractContextManager[object]:
        """Waits for a key's lock; the folder is made where there is none."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return FileLock(self.folder / f"{key}.lock").acquire()
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot hold engines ({error.strerror}); "
                f"name another folder in ${CACHE_VARIABLE}"
            ) from error


def engine_key(shaped_by: dict[str, object]) -> str:
    """Gives the SHA-256 of a description; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path) -> bytes:
    """Reads a plan of the cache, checking those very bytes against its record.

    Raises:
        BuildError: the plan or its record is missing or was changed since it was built.
    """
    return _read_entry(path.parent)[1]


def _read_entry(entry: Path) -> tuple[PlanRecord, bytes]:
    try:
        record = msgspec.json.decode((entry / RECORD_FILE).read_bytes(), type=PlanRecord)
        plan = (entry / PLAN_FILE).read_bytes()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BuildError(f"cached engine {entry} is incomplete: {error}") from error
    if engine_key(record.shaped_by) != entry.name:
        raise BuildError(f"cached engine {entry} was built for something else")
    if len(plan) != record.size_bytes or hashlib.sha256(plan).hexdigest() != record.sha256:
        raise BuildError(f"cached engine {entry} was changed after it was built")
    return record, plan


def _write_entry(entry: Path, plan: bytes, record: PlanRecord) -> None:
    with staged_folder(entry, force=True) as folder:
        (folder / PLAN_FILE).write_bytes(plan)
        (folder / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
