"""A folder of built engines: each is found by what shaped it, and used only while its hash holds.

<folder>/<key>/engine.plan   the serialized engine
<folder>/<key>/record.json   its SHA-256, size, build time and layers, and what shaped it
<folder>/<key>.lock          held by the one process that builds it

A plan is as old as its file; its record is touched when it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from hybrid_deploy.bundle.atomic_write import staged_folder
from hybrid_deploy.cache_dir import CACHE_VARIABLE, cache_folder
from hybrid_deploy.errors import BuildError, InputError
from hybrid_deploy.runtime.engines.compatibility import (
    flavour_mismatch,
    gpu_mismatch,
    version_mismatch,
)
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
from hybrid_deploy.target import Flavour

PLAN_FILE = "engine.plan"
RECORD_FILE = "record.json"


class BuiltFor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph that an engine was first built for; another bundle may have the same."""

    bundle: str
    variant: str
    graph: str


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a plan; `shaped_by` is what its key is the hash of.

    `peak_bytes` is the most memory that its build took.
    """

    sha256: str
    size_bytes: int
    build_seconds: float
    shaped_by: dict[str, object]
    built_for: BuiltFor | None = None
    layers: LayerSummary | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class BuiltPlan:
    """A new plan, what building it took, and what TensorRT made of the graph."""

    plan: bytes
    seconds: float
    layers: LayerSummary | None = None
    peak_bytes: int | None = None


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
        built_for: BuiltFor | None = None,
    ) -> CachedPlan:
        """Returns the engine that `shaped_by` describes, building it where there is no sound one.

        Processes that ask for one engine at the same time wait for the first to build it.

        Args:
            shaped_by: Everything that the engine depends on, as JSON types.
            build: Builds the plan; called at most once.
            on_damage: Is told why an engine that was there is built anew.
            built_for: Goes into the record of a new engine.

        Raises:
            InputError: the folder cannot be used.
        """
        key = engine_key(shaped_by)
        entry = self.folder / key
        with self.locked(key):
            if entry.exists():
                try:
                    record, _ = _read_entry(entry)
                    _touch(entry)
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
                built_for=built_for,
                layers=built.layers,
                peak_bytes=built.peak_bytes,
            )
            _write_entry(entry, built.plan, record)
        return CachedPlan(entry / PLAN_FILE, record, from_cache=False)

    def locked(self, key: str, *, wait: bool = True) -> AbstractContextManager[object]:
        """Takes a key's lock; the folder is made where there is none.

        Raises:
            InputError: the folder cannot be used.
            filelock.Timeout: another process holds the lock, and `wait` is not given.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return FileLock(self.folder / f"{key}.lock").acquire(-1 if wait else 0)
        except Timeout:
            raise
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot hold engines ({error.strerror}); "
                f"name another folder in ${CACHE_VARIABLE}"
            ) from error


def engine_key(shaped_by: dict[str, object]) -> str:
    """Returns the SHA-256 of a description; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()


def read_plan(
    path: Path,
    version: str | None = None,
    *,
    flavour: Flavour | None = None,
    gpu: LocalGpu | None = None,
) -> bytes:
    """Reads a plan of the cache, checking those very bytes against its record.

    What the record says is checked first, so nothing of a foreign engine is ever loaded.

    Args:
        path: The plan, as `CachedPlan` gives it.
        version: Of the TensorRT that is going to load it; None does not ask.
        flavour: Likewise.
        gpu: That is going to run it; None does not ask.

    Raises:
        BuildError: the plan or its record is missing or was changed since it was built, or it is
            for another TensorRT or another GPU.
    """
    shaped_by = read_record(path.parent).shaped_by
    misfits = (
        flavour and flavour_mismatch(shaped_by, flavour),
        version and version_mismatch(shaped_by, version),
        gpu and gpu_mismatch(shaped_by, gpu),
    )
    if misfit := next(filter(None, misfits), None):
        raise BuildError(f"cached engine {path.parent} {misfit}")
    _, plan = _read_entry(path.parent)
    _touch(path.parent)
    return plan


def read_record(entry: Path) -> PlanRecord:
    """Reads the record of an engine without looking at the plan.

    Raises:
        BuildError: it is missing, cannot be read, or is that of another engine.
    """
    try:
        record = msgspec.json.decode((entry / RECORD_FILE).read_bytes(), type=PlanRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BuildError(f"cached engine {entry} is incomplete: {error}") from error
    if engine_key(record.shaped_by) != entry.name:
        raise BuildError(f"cached engine {entry} was built for something else")
    return record


def _touch(entry: Path) -> None:
    with suppress(OSError):  # a cache that is only read still serves
        os.utime(entry / RECORD_FILE)


def _read_entry(entry: Path) -> tuple[PlanRecord, bytes]:
    record = read_record(entry)
    try:
        plan = (entry / PLAN_FILE).read_bytes()
    except OSError as error:
        raise BuildError(f"cached engine {entry} is incomplete: {error}") from error
    if len(plan) != record.size_bytes:
        raise BuildError(
            f"cached engine {entry} has {len(plan)} bytes and was built with {record.size_bytes}"
        )
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise BuildError(f"cached engine {entry} was changed after it was built")
    return record, plan


def _write_entry(entry: Path, plan: bytes, record: PlanRecord) -> None:
    with staged_folder(entry, force=True) as folder:
        (folder / PLAN_FILE).write_bytes(plan)
        (folder / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)))
