"""Bundles: opened after their hashes are checked, written completely or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from hybrid_deploy.argument_checks import path_of
from hybrid_deploy.bundle import pending
from hybrid_deploy.bundle.atomic_write import (
    is_set_aside,
    make_parent,
    recover,
    staged_folder,
    write_file,
)
from hybrid_deploy.bundle.bundle_file import BundleFile
from hybrid_deploy.bundle.consistency import (
    check_consistency,
    check_same_model,
    files_for,
    home_of,
)
from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.manifest import (
    FileRecord,
    GraphSpec,
    Manifest,
    Variant,
    decode_manifest,
    encode_manifest,
    read_manifest,
)
from hybrid_deploy.bundle.paths import (
    MANIFEST_FILE,
    behind_link,
    check_paths,
    check_variant_name,
    link_on_the_way,
    top_folder,
)
from hybrid_deploy.bundle.placement import check_folder_output
from hybrid_deploy.bundle.replacement import check_replaceable, check_variant_output
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError, InputError
from hybrid_deploy.system_errors import typed_errors

if TYPE_CHECKING:
    from hybrid_deploy.bundle.signature import Trust

_CHUNK_BYTES = 1 << 20
_UNLISTED = (MANIFEST_FILE, pending.MARK_FILE)
_OPEN_ATTEMPTS = 20
_OPEN_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; the files that `open_bundle` checked had the hashes of the manifest.

    Attributes:
        folder: folder of the bundle.
        manifest: content of its `manifest.json`.
        hashes: hashes of its files that were checked before; None checks them at every reading.
    """

    folder: Path
    manifest: Manifest
    hashes: HashCache | None = field(default=None, compare=False, repr=False)

    def variant(self, name: str) -> Variant:
        """Returns the variant of that name.

        Raises:
            InputError: no variant has that name; the message lists the variants of the bundle.
        """
        try:
            return self.manifest.variants[name]
        except KeyError:
            names = ", ".join(self.manifest.variants)
            raise InputError(
                f"{self.folder} has no variant {name!r} (it has {names}); "
                f"make it with: hybrid-deploy quantize {self.folder} --precision {name}"
            ) from None

    def graph(self, variant: str, role: GraphRole) -> GraphSpec:
        """Returns one graph of a variant; the variant must have it, see `graphs`."""
        return self.graphs(variant)[role]

    def graphs(self, variant: str) -> dict[GraphRole, GraphSpec]:
        """Returns the graphs of a variant; prefill, refine and beam step may be missing.

        Raises:
            InputError: no variant has that name.
        """
        described = self.variant(variant)
        specs = {role: getattr(described, role.value) for role in GraphRole}
        return {role: spec for role, spec in specs.items() if spec is not None}

    def loop_graphs(self, variant: str) -> dict[GraphRole, GraphSpec]:
        """Returns the graphs that every decoding loop needs: all except the beam step."""
        graphs = self.graphs(variant)
        return {role: spec for role, spec in graphs.items() if role is not GraphRole.BEAM_STEP}

    def graph_path(self, variant: str, role: GraphRole) -> Path:
        """Returns the path of the ONNX file of one graph."""
        return self.folder / self.graph(variant, role).file

    def open_file(self, name: str) -> BundleFile:
        """Opens a file of the bundle, whose content is verified when it is read.

        Args:
            name: path of the file, relative to the bundle. A file that no manifest lists yet is one
                that this process wrote itself, and is not verified.

        Raises:
            BundleError: the file is missing, is no file, or has another size than its record.
        """
        return BundleFile(self.folder, name, self.manifest.files.get(name), self.hashes)

    def read_file(self, name: str) -> bytes:
        """Returns the verified content of a file; see `open_file`.

        Raises:
            BundleError: the file is missing, or its content is not the one in its record.
        """
        with closing(self.open_file(name)) as file:
            return file.read()

    def variant_size_bytes(self, name: str) -> int:
        """Returns the size in bytes of the files in the folder of one variant."""
        home = home_of(self.variant(name))
        files = self.manifest.files.items()
        return sum(record.size_bytes for file, record in files if top_folder(file) == home)


@typed_errors()
def open_bundle(path: str | Path, *, only: str | None = None, trust: Trust | None = None) -> Bundle:
    """Checks the files of a bundle against its manifest, and returns the bundle.

    Args:
        path: folder of the bundle.
        only: name of a variant. The files of other variants are then not checked, and a file whose
            hash was checked before is hashed again only if it changed. None hashes every file.
        trust: which signatures are accepted; files are then hashed at every reading, whatever was
            checked before. None accepts a bundle without a signature.

    Raises:
        InputError: the folder does not exist, is no bundle, or has no such variant.
        BundleError: the manifest is damaged or has another schema version, a file is missing or
            changed, or no trusted key signed the bundle.
        UsageError: `trust` is something else.
        MissingDependencyError: `trust` is given, and `cryptography` is not installed.
    """
    path = path_of(path)
    if trust is not None:
        from hybrid_deploy.bundle.signature import check_trust

        check_trust(trust)
    for attempt in range(_OPEN_ATTEMPTS):
        before = _stamp(path)
        try:
            return _open_once(path, only, trust)
        except (BundleError, InputError, OSError):
            replaced = _stamp(path) != before or (before is None and _bring_back(path))
            if not replaced or attempt == _OPEN_ATTEMPTS - 1:
                raise
            time.sleep(_OPEN_PAUSE_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _open_once(path: Path, only: str | None, trust: Trust | None) -> Bundle:
    """Opens a bundle that no other process replaces meanwhile."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not (path / MANIFEST_FILE).is_file():
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST_FILE}")
    path = behind_link(path)  # what is loaded later comes from the same folder
    bundle = Bundle(folder=path, manifest=_read_manifest(path, trust))
    if only is None:
        for name in bundle.manifest.files:
            _check(bundle, name)
        return bundle
    if trust is None:
        bundle = replace(bundle, hashes=HashCache(path))
    for name in files_for(bundle.manifest, bundle.variant(only)):
        _check(bundle, name)
    if bundle.hashes is not None:
        bundle.hashes.save()
    return bundle


def _check(bundle: Bundle, name: str) -> None:
    with closing(bundle.open_file(name)) as file:
        file.check()


def _read_manifest(folder: Path, trust: Trust | None = None) -> Manifest:
    path = folder / MANIFEST_FILE
    content = read_manifest(path)
    if trust is not None:
        from hybrid_deploy.bundle.signature import check_signature

        check_signature(folder, content, trust)
    manifest = decode_manifest(content, origin=str(path))
    check_paths(manifest, origin=str(path))
    check_consistency(manifest, origin=str(path))
    for name in (MANIFEST_FILE, *manifest.files):
        if (link := link_on_the_way(folder, name)) is not None:
            raise BundleError(f"{link} is a link; a bundle holds its files itself: copy it again")
    return manifest


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Returns what changes when a bundle is replaced or gets another manifest; None if missing."""
    try:
        folder, manifest = path.stat(), (path / MANIFEST_FILE).stat()
    except OSError:
        return None
    return folder.st_ino, manifest.st_ino, manifest.st_mtime_ns


def _bring_back(path: Path) -> bool:
    """Returns whether a bundle is back, or soon will be, that another process set aside."""
    target = behind_link(path)
    if not is_set_aside(target):
        return False
    from filelock import Timeout

    try:
        with exclusive(target, wait=False):
            recover(target)
    except Timeout:
        pass  # the process that replaces it is alive
    return True


@contextmanager
def staged_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields an empty folder, and renames it to `target` when the block ends without an error.

    The block writes the files of the bundle, and then its manifest with `seal_bundle`.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: `target` exists, and is not a bundle or holds more than a bundle; it is not
            replaced even with `force`.
    """
    check_bundle_output(target, force=force)
    target = behind_link(target)
    make_parent(target)
    with exclusive(target), staged_folder(target, force=force, check=check_replaceable) as folder:
        yield folder


def check_bundle_output(target: Path, *, force: bool) -> None:
    """Checks that a bundle can be placed at a path, as `staged_bundle` does at its end.

    Raises:
        OutputExistsError: `target` exists and `force` is false.
        InputError: `target` exists and is not replaced even with `force`.
    """
    check_folder_output(behind_link(target), force=force, check=check_replaceable)


def seal_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest with the hash of every file in the folder.

    Returns:
        The manifest as it was written.
    """
    sealed = msgspec.structs.replace(manifest, files=hash_files(folder))
    _write_manifest(folder, sealed)
    return sealed


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest that can be read again.

    Raises:
        BundleError: `decode_manifest` refuses its bytes; nothing is written.
    """
    data = encode_manifest(manifest)
    decode_manifest(data, f"the {MANIFEST_FILE} to be written")
    write_file(folder / MANIFEST_FILE, data)


@dataclass
class StagedVariant:
    """A variant that is being written.

    Attributes:
        home: name that the variant's folder has in the finished bundle.
        folder: folder to write the variant's files to.
        variant: description of the variant; the block of `staged_variant` sets it.
    """

    home: str
    folder: Path
    variant: Variant | None = None


@contextmanager
def staged_variant(
    bundle: Bundle, name: str, *, source: str | None = None, force: bool = False
) -> Iterator[StagedVariant]:
    """Yields a variant with a folder for its files, and adds it to the bundle at the end.

    The bundle changes in one step, when its manifest is replaced. The folder of a variant that is
    replaced is deleted after that.

    Args:
        bundle: the bundle; other variants may have been added since it was opened.
        name: name of the new variant.
        source: name of the variant that the new one is made from; None for none.
        force: whether a variant of that name may be replaced.

    Raises:
        UsageError: the name cannot name a variant.
        BundleError: the manifest is damaged, leads out of the bundle, or is that of another model
            or source than the opened one.
        OutputExistsError: the bundle has a variant of that name and `force` is false.
        InputError: the folder of that variant holds more than the variant; it is not replaced.
    """
    check_variant_name(name)
    with exclusive(bundle.folder):
        current = _read_manifest(bundle.folder)
        check_same_model(bundle.manifest, current, source, origin=str(bundle.folder))
        check_variant_output(bundle.folder, current, name, force=force)
        pending.clean(bundle.folder, current)
        try:
            yield from _staged(bundle.folder, current, name)
        except (Exception, KeyboardInterrupt):
            pending.clean(bundle.folder, _read_manifest(bundle.folder))
            raise


def _staged(folder: Path, current: Manifest, name: str) -> Iterator[StagedVariant]:
    """Yields a variant to write, and adds it to a bundle; marks name the folders that change."""
    home, retired = _free_home(folder, name), current.variants.get(name)
    with staged_folder(folder / home) as staging:
        staged = StagedVariant(home=home, folder=staging)
        yield staged
        assert staged.variant is not None, "a staged variant must be described"
        records = hash_files(staging)
        pending.mark(staging, records, home)
    files = _files_without(current.files, retired) | {
        f"{home}/{file}": record for file, record in records.items()
    }
    variants = current.variants | {name: staged.variant}
    manifest = msgspec.structs.replace(current, files=files, variants=variants)
    check_paths(manifest, origin=str(folder / MANIFEST_FILE))
    check_variant_output(folder, current, name, force=True)  # the work may have taken hours
    if retired is not None and (old := folder / home_of(retired)).is_dir():
        own = [PurePosixPath(file) for file in current.files if top_folder(file) == old.name]
        pending.mark(old, [file.relative_to(old.name).as_posix() for file in own])
    _write_manifest(folder, manifest)
    pending.clean(folder, manifest)


def _free_home(folder: Path, name: str) -> str:
    """Returns a folder name that nothing in a bundle has: the variant's, or it and a number.

    It differs in more than case, so that the bundle can be copied to a system that ignores case.
    """
    taken = {path.name.casefold() for path in folder.iterdir()}
    candidates = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))]
    return next(home for home in candidates if home.casefold() not in taken)


def _files_without(files: dict[str, FileRecord], variant: Variant | None) -> dict[str, FileRecord]:
    if variant is None:
        return files
    return {file: record for file, record in files.items() if top_folder(file) != home_of(variant)}


def hash_files(folder: Path) -> dict[str, FileRecord]:
    """Returns size and hash of every file below a folder, except the manifest and marks.

    Keys are paths relative to the folder, with slashes.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _UNLISTED)
    return {p.relative_to(folder).as_posix(): _record(p) for p in files}


def _record(path: Path) -> FileRecord:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=path.stat().st_size)
