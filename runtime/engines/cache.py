"""A folder of built engines.

The key of an engine is the hash of its `shaped_by`: of everything that the engine depends on. An
engine is used only if its file still has the recorded hash.

<folder>/<key>/engine.plan   the plan: the serialized engine
<folder>/<key>/record.json   SHA-256, size, build time and layers of the plan, and its `shaped_by`
<folder>/<key>.lock          the lock of the process that builds the engine

The time stamp of a plan is the time of its build; the time stamp of a record, of its last use.
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
from hybrid_deploy.errors import BuildError, HybridDeployError, InputError
from hybrid_deploy.runtime.engines.compatibility import (
    flavour_mismatch,
    gpu_mismatch,
    version_mismatch,
)
from hybrid_deploy.runtime.engines.ownership import check_entry, check_own
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.layer_report import LayerSummary
from hybrid_deploy.system_errors import full_disk_reason
from hybrid_deploy.target import Flavour

PLAN_FILE = "engine.plan"
RECORD_FILE = "record.json"


class BuiltFor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph that an engine was first built for; another bundle may contain the same graph.

    Attributes:
        bundle: name of the bundle.
        variant: name of the variant.
        graph: role of the graph.
    """

    bundle: str
    variant: str
    graph: str


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a `record.json`.

    Attributes:
        sha256: SHA-256 of the plan.
        size_bytes: size of the plan.
        build_seconds: time of the build, in seconds.
        shaped_by: everything that the engine depends on, as JSON types; its hash is the key.
        built_for: graph that the engine was first built for; None in an old record.
        layers: summary of the engine's layers; None in an old record.
        peak_bytes: largest RAM of the build process; None in an old record.
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
    """A new plan and facts of its build.

    Attributes:
        plan: the serialized engine.
        seconds: time of the build, in seconds.
        layers: summary of the engine's layers.
        peak_bytes: largest RAM of the build process.
    """

    plan: bytes
    seconds: float
    layers: LayerSummary | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class CachedPlan:
    """A plan on disk.

    Attributes:
        path: file of the plan.
        record: record of the plan.
        from_cache: whether the plan was in the cache already.
    """

    path: Path
    record: PlanRecord
    from_cache: bool


class EngineCache:
    """The engines that this user built on this machine.

    To load an engine is to run its native code. So only the user can open the folder, and engines
    of another machine must never be copied into it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Uses `folder`; None takes `engines` in $HYBRID_DEPLOY_CACHE or ~/.cache/hybrid_deploy."""
        self.folder = folder or cache_folder("engines")

    def get_or_build(
        self,
        shaped_by: dict[str, object],
        build: Callable[[], BuiltPlan],
        on_damage: Callable[[str], None] | None = None,
        built_for: BuiltFor | None = None,
    ) -> CachedPlan:
        """Returns the engine that `shaped_by` describes; builds a missing or damaged one.

        If several processes request one engine at the same time, the first one builds it and the
        others wait.

        Args:
            shaped_by: everything that the engine depends on, as JSON types.
            build: builds the plan; called at most once.
            on_damage: called with the reason if a damaged engine is built again.
            built_for: graph that the record of a new engine names.

        Raises:
            InputError: the folder cannot be used, or that of a damaged engine holds something else.
            BuildError: another user could have written into the folder.
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
                    _check_replaceable(entry, entry)
                    if on_damage is not None:
                        on_damage(f"{error}; building it again")
            new_plan = build()
            record = PlanRecord(
                sha256=hashlib.sha256(new_plan.plan).hexdigest(),
                size_bytes=len(new_plan.plan),
                build_seconds=new_plan.seconds,
                shaped_by=shaped_by,
                built_for=built_for,
                layers=new_plan.layers,
                peak_bytes=new_plan.peak_bytes,
            )
            _write_entry(entry, new_plan.plan, record)
        return CachedPlan(entry / PLAN_FILE, record, from_cache=False)

    def locked(self, key: str, *, wait: bool = True) -> AbstractContextManager[object]:
        """Acquires the lock of a key and returns it as a context; makes the folder if necessary.

        Raises:
            InputError: the folder cannot be used.
            HybridDeployError: the disk is full.
            filelock.Timeout: another process holds the lock, and `wait` is False.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_own(self.folder.resolve())
            return FileLock(self.folder / f"{key}.lock").acquire(-1 if wait else 0)
        except Timeout:
            raise
        except OSError as error:
            if reason := full_disk_reason(error):
                raise HybridDeployError(f"{self.folder}: {reason}") from error
            raise InputError(
                f"{self.folder} cannot hold engines ({error.strerror}); "
                f"name another folder in ${CACHE_VARIABLE}"
            ) from error


def engine_key(shaped_by: dict[str, object]) -> str:
    """Returns the key of an engine: the SHA-256 of its `shaped_by`, with sorted keys."""
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()


def read_plan(
    path: Path,
    version: str | None = None,
    *,
    flavour: Flavour | None = None,
    gpu: LocalGpu | None = None,
) -> bytes:
    """Returns the bytes of a plan in the cache, checked against the plan's record.

    The record is checked first: an engine for another TensorRT or GPU is not even read.

    Args:
        path: file of the plan, `CachedPlan.path`.
        version: version of the TensorRT that will load the engine; None skips this check.
        flavour: flavour of that TensorRT; None skips this check.
        gpu: GPU that will run the engine; None skips this check.

    Raises:
        BuildError: the plan or its record is missing or has changed since the build, or the engine
            is for another TensorRT or another GPU.
    """
    shaped_by = read_record(path.parent).shaped_by
    mismatches = (
        flavour and flavour_mismatch(shaped_by, flavour),
        version and version_mismatch(shaped_by, version),
        gpu and gpu_mismatch(shaped_by, gpu),
    )
    if mismatch := next(filter(None, mismatches), None):
        raise BuildError(f"cached engine {path.parent} {mismatch}")
    _, plan = _read_entry(path.parent)
    _touch(path.parent)
    return plan


def read_record(entry: Path) -> PlanRecord:
    """Returns the record of an engine; does not read the plan.

    Args:
        entry: folder of the engine, `<folder>/<key>`.

    Raises:
        BuildError: the record is missing, cannot be read, or belongs to another engine; or another
            user could have written the engine.
    """
    try:
        check_entry(entry, (RECORD_FILE, PLAN_FILE))
        record = msgspec.json.decode((entry / RECORD_FILE).read_bytes(), type=PlanRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BuildError(f"cached engine {entry} is incomplete: {error}") from error
    if engine_key(record.shaped_by) != entry.name:
        raise BuildError(f"cached engine {entry} was built for something else")
    return record


def other_files(entry: Path) -> list[str]:
    """Returns what lies in the folder of an engine besides the engine, by name."""
    if entry.is_symlink() or not entry.is_dir():
        return []
    return sorted(set(os.listdir(entry)) - {PLAN_FILE, RECORD_FILE})


def _touch(entry: Path) -> None:
    with suppress(OSError):  # a cache without write access can still be read
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
    with staged_folder(entry, force=True, check=_check_replaceable) as folder:
        (folder / PLAN_FILE).write_bytes(plan)
        (folder / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def _check_replaceable(entry: Path, name: Path) -> None:
    """Checks that the folder of a damaged engine holds nothing else, since it is replaced.

    Raises:
        InputError: it holds something else.
    """
    if others := other_files(entry):
        raise InputError(
            f"{name} also holds {others[0]}, which is of no engine; move that away, and build again"
        )
