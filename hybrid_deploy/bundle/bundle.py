"""The deployable folder: written whole or not at all, opened only when every hash holds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hybrid_deploy.bundle.atomic_write import staged_folder, write_file
from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.bundle.manifest import (
    FileRecord,
    GraphSpec,
    Manifest,
    Variant,
    decode_manifest,
    encode_manifest,
)
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError, InputError, OutputExistsError

MANIFEST_FILE = "manifest.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its verified manifest."""

    folder: Path
    manifest: Manifest

    def variant(self, name: str) -> Variant:
        """Returns the variant of that name.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        try:
            return self.manifest.variants[name]
        except KeyError:
            known = ", ".join(self.manifest.variants)
            raise InputError(
                f"{self.folder} has no variant {name!r} (it has {known}); "
                f"make it with: hybrid-deploy quantize {self.folder} --precision {name}"
            ) from None

    def graph(self, variant: str, role: GraphRole) -> GraphSpec:
        """Returns one graph of a variant, of those that `graphs` lists."""
        return self.graphs(variant)[role]

    def graphs(self, variant: str) -> dict[GraphRole, GraphSpec]:
        """Returns the graphs of a variant; a decoder that steps by itself has no prefill."""
        found = self.variant(variant)
        specs = {role: getattr(found, role.value) for role in GraphRole}
        return {role: spec for role, spec in specs.items() if spec is not None}

    def loop_graphs(self, variant: str) -> dict[GraphRole, GraphSpec]:
        """Returns the graphs that every loop needs: all but the step of beam searches."""
        graphs = self.graphs(variant)
        return {role: spec for role, spec in graphs.items() if role is not GraphRole.BEAM_STEP}

    def graph_path(self, variant: str, role: GraphRole) -> Path:
        """Returns the path of one ONNX graph."""
        return self.folder / self.graph(variant, role).file

    def variant_size_bytes(self, name: str) -> int:
        """Sums the files that a device needs for one variant."""
        home = _home(self.variant(name))
        files = self.manifest.files.items()
        return sum(record.size_bytes for file, record in files if Path(file).parts[0] == home)


def open_bundle(path: Path, *, only: str | None = None) -> Bundle:
    """Opens a bundle after checking its files against the manifest.

    Args:
        path: the bundle's folder.
        only: name of a variant. Then the files of others are not looked at, and a file that was
            checked before is read again only if it changed. None reads every file.

    Raises:
        InputError: there is no such folder, it is no bundle, or it has no such variant.
        BundleError: a file is missing or differs, or the schema version is unknown.
    """
    manifest_path = path / MANIFEST_FILE
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not manifest_path.is_file():
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST_FILE}")
    manifest = decode_manifest(manifest_path.read_bytes(), origin=str(manifest_path))
    bundle = Bundle(folder=path, manifest=manifest)
    if only is None:
        for name, record in manifest.files.items():
            _check_file(path, name, record)
    else:
        _check_once(path, _files_for(bundle, only))
    return bundle


def _files_for(bundle: Bundle, variant: str) -> dict[str, FileRecord]:
    """Returns the files that one variant needs: its own, and those of no variant."""
    own = _home(bundle.variant(variant))
    others = {_home(other) for other in bundle.manifest.variants.values()} - {own}
    files = bundle.manifest.files.items()
    return {name: record for name, record in files if Path(name).parts[0] not in others}


def _check_once(folder: Path, files: Mapping[str, FileRecord]) -> None:
    known = HashCache(folder)
    for name, record in files.items():
        if known.sha256(name) != record.sha256:
            _check_file(folder, name, record)
            known.remember(name, record.sha256)
    known.save()


@contextmanager
def staged_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a folder to fill; seal it with `seal_bundle`, and it becomes `target` at the end.

    Raises:
        OutputExistsError: `target` exists and `force` is not given.
        InputError: `target` exists and is not a bundle, so it is never replaced.
    """
    if target.exists() and force and not (target / MANIFEST_FILE).is_file():
        raise InputError(f"{target} exists and is not a bundle; it is not replaced")
    with staged_folder(target, force=force) as folder:
        yield folder


def seal_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest with the hash of every file that the folder holds."""
    sealed = msgspec.structs.replace(manifest, files=hash_files(folder))
    write_file(folder / MANIFEST_FILE, encode_manifest(sealed))
    return sealed


@dataclass
class StagedVariant:
    """Where a new variant's files go, and its description once it is known.

    `home` is the name of the variant's folder within the bundle; `folder` is where to write now.
    """

    home: str
    folder: Path
    variant: Variant | None = None


@contextmanager
def staged_variant(bundle: Bundle, name: str, *, force: bool = False) -> Iterator[StagedVariant]:
    """Yields a place for a new variant's files; at the end the bundle gains the variant.

    The bundle stays what it was until its manifest is replaced, in one step; a variant that is
    replaced keeps its folder until then.

    Raises:
        OutputExistsError: the bundle has that variant and `force` is not given.
    """
    if name in bundle.manifest.variants and not force:
        raise OutputExistsError(f"variant {name} of {bundle.folder}")
    from filelock import FileLock  # takes longer than the rest of this module's imports

    with FileLock(bundle.folder.parent / f".{bundle.folder.name}.lock"):
        manifest_path = bundle.folder / MANIFEST_FILE
        current = decode_manifest(manifest_path.read_bytes(), str(manifest_path))
        home = _free_home(current, name)
        with staged_folder(bundle.folder / home, force=True) as folder:
            staged = StagedVariant(home=home, folder=folder)
            yield staged
            assert staged.variant is not None, "a staged variant must be described"
        retired = current.variants.get(name)
        files = _without(current.files, retired) | {
            f"{home}/{file}": record for file, record in hash_files(bundle.folder / home).items()
        }
        variants = current.variants | {name: staged.variant}
        manifest = msgspec.structs.replace(current, files=files, variants=variants)
        write_file(manifest_path, encode_manifest(manifest))
        if retired is not None:
            shutil.rmtree(bundle.folder / _home(retired), ignore_errors=True)


def _home(variant: Variant) -> str:
    return Path(variant.encoder.file).parts[0]


def _free_home(manifest: Manifest, name: str) -> str:
    taken = {_home(variant) for variant in manifest.variants.values()}
    return (
        name
        if name not in taken
        else next(
            home for home in (f"{name}-{i}" for i in range(2, len(taken) + 3)) if home not in taken
        )
    )


def _without(files: dict[str, FileRecord], variant: Variant | None) -> dict[str, FileRecord]:
    if variant is None:
        return files
    return {file: record for file, record in files.items() if Path(file).parts[0] != _home(variant)}


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Hashes every file below a folder but its manifest; keys are relative, with slashes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    return {p.relative_to(folder).as_posix(): _record(p) for p in files}


def _record(path: Path) -> FileRecord:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def _check_file(folder: Path, name: str, expected: FileRecord) -> None:
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise BundleError(f"{folder} names a file outside itself: {name}")
    if not path.is_file():
        raise BundleError(f"{folder} is incomplete: {name} is missing; copy the bundle again")
    if path.stat().st_size != expected.size_bytes or _record(path) != expected:
        raise BundleError(f"{folder} is damaged: {name} was changed; copy the bundle again")
