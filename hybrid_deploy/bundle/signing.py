"""Makes keys and signs bundles; `signature` says what is signed, and checks it.

A signature says that its maker has checked the bundle. So every file is checked under the lock of
the bundle, and signed are the bytes of the manifest that the maker saw before the wait for it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hybrid_deploy.argument_checks import check_integer
from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.manifest import decode_manifest, read_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE
from hybrid_deploy.bundle.signature import (
    MAX_VERSION,
    Signature,
    belongs_to,
    key_name,
    library,
    load_key,
    signatures_of,
    signed_bytes,
)
from hybrid_deploy.errors import BundleError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_keys(path: Path) -> tuple[Path, Path]:
    """Makes a new key pair: `path`, which signs and only its owner can read, and `path`.pub.

    Returns:
        The paths of the private and of the public key.

    Raises:
        InputError: one of the two files exists; a key is never replaced.
        OSError: the disk is full or not writable; no half of the pair stays.
        MissingDependencyError: `cryptography` is not installed.
    """
    ed25519, serialization = library()
    private, public = path, path.with_name(f"{path.name}.pub")
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise InputError(f"{file} exists; a key is never replaced: name another file")
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    open_key = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with _new_file(private, secret, 0o600), _new_file(public, open_key, 0o644):
        return private, public


@contextmanager
def _new_file(path: Path, content: bytes, mode: int) -> Iterator[None]:
    """Writes a file that does not exist, and removes it after an error, in the block too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sign(folder: Path, key: Path, version: int) -> Signature:
    """Checks every file of a bundle, and signs it.

    An earlier signature of the same key is replaced, those of others stay. Signatures of an earlier
    manifest, before a variant was added, are removed.

    Args:
        folder: the bundle.
        key: file of the private key.
        version: version of the bundle, a whole number from 0 on.

    Raises:
        UsageError: the version is out of range.
        InputError: the key cannot be used, or the folder is no bundle.
        BundleError: a file or the signatures are damaged, or the bundle changed meanwhile.
        MissingDependencyError: `cryptography` is not installed.
    """
    check_integer("the version", version, 0, MAX_VERSION)
    private = _private_key(key)
    manifest = _manifest_of(folder)
    with exclusive(folder):
        bundle = open_bundle(folder)
        origin = str(bundle.folder / MANIFEST_FILE)
        if bundle.manifest != decode_manifest(manifest, origin):
            raise BundleError(
                f"another process changed {folder} meanwhile; see what it holds, and sign it again"
            )
        name = key_name(private.public_key())
        made = Signature(name, version, private.sign(signed_bytes(manifest, version)).hex())
        others = [
            other
            for other in signatures_of(bundle.folder)
            if other.key != name and belongs_to(other, manifest)
        ]
        content = msgspec.json.format(msgspec.json.encode([*others, made]))
        write_file(bundle.folder / SIGNATURE_FILE, content)
    return made


def _manifest_of(folder: Path) -> bytes:
    """Returns the bytes of a bundle's manifest; without one, whoever opens the bundle says why."""
    path = folder / MANIFEST_FILE
    return read_manifest(path if path.is_file() else open_bundle(folder).folder / MANIFEST_FILE)


def _private_key(path: Path) -> Ed25519PrivateKey:
    ed25519, serialization = library()
    key = load_key(path, lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{path} is no private Ed25519 key; make one: hybrid-deploy keygen FILE")
    _check_private(path)
    private: Ed25519PrivateKey = key
    return private


def _check_private(path: Path) -> None:
    """Checks that nobody else can read a private key, or put another one in its place.

    Raises:
        InputError: others have a right to the file.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OF_OTHERS and sys.platform != "win32":
        raise InputError(
            f"{path} has mode {mode:04o}, so that others can use the private key; "
            f"give it to its owner alone: chmod 600 {path}"
        )
