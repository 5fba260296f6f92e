"""Signs bundles and checks signatures: Ed25519 over the manifest, which has the hash of every file.

`signature.json` in the bundle holds one signature for each key that signed it. Signed are the
SHA-256 of `manifest.json` and a version number; so a change of any file, of the manifest or of the
version breaks every signature. Not signed are the names of the folder and of the keys.

Whoever trusts several keys can replace one by another: bundles signed by either are accepted.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from hybrid_deploy.bundle.atomic_write import write_file
from hybrid_deploy.bundle.bundle_file import read_small_file
from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.bundle.paths import MANIFEST_FILE, SIGNATURE_FILE
from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_PURPOSE = b"hybrid_deploy bundle 1\n"  # so that no signature of other data is ever taken for one
_PEM_BEGIN = b"-----BEGIN "
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_VERSION = (1 << 63) - 1
_MAX_KEY_BYTES = 1 << 16

MAX_SIGNATURE_BYTES = 1 << 16
"""Largest `signature.json` that is read."""


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signature of one key.

    Attributes:
        key: the public key, 64 hexadecimal digits.
        version: version that the signer gave the bundle, a whole number from 0 on.
        signature: the signature, 128 hexadecimal digits.
    """

    key: str
    version: int
    signature: str


@dataclass(frozen=True)
class Trust:
    """Which bundles are accepted.

    Attributes:
        keys: files of the public keys that are trusted; one signature by any of them is enough.
        at_least: smallest version that is accepted, so that an old bundle is not taken for a new
            one.
    """

    keys: tuple[Path, ...]
    at_least: int = 0


def make_keys(path: Path) -> tuple[Path, Path]:
    """Makes a new key pair: `path`, which signs and only its owner can read, and `path`.pub.

    Returns:
        The paths of the private and of the public key.

    Raises:
        InputError: one of the two files exists; a key is never replaced.
        OSError: the disk is full or not writable; no half of the pair stays.
        MissingDependencyError: `cryptography` is not installed.
    """
    ed25519, serialization = _library()
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
    """Signs a bundle; an earlier signature of the same key is replaced, those of others stay.

    Signatures of an earlier manifest, before a variant was added, are removed.

    Args:
        folder: the bundle, which the caller has opened and so checked.
        key: file of the private key.
        version: version of the bundle, a whole number from 0 on.

    Raises:
        InputError: the key cannot be used, or the version is out of range.
        BundleError: the file of signatures is damaged.
        MissingDependencyError: `cryptography` is not installed.
    """
    if not 0 <= version <= _MAX_VERSION:
        raise InputError(f"the version must be from 0 to {_MAX_VERSION}, got {version}")
    private = _private_key(key)
    with exclusive(folder):
        manifest = (folder / MANIFEST_FILE).read_bytes()
        name = _hex(private.public_key())
        made = Signature(name, version, private.sign(_signed(manifest, version)).hex())
        others = [
            other
            for other in signatures_of(folder)
            if other.key != name and _holds(other, manifest)
        ]
        write_file(
            folder / SIGNATURE_FILE, msgspec.json.format(msgspec.json.encode([*others, made]))
        )
    return made


def signatures_of(folder: Path) -> list[Signature]:
    """Returns the signatures in a bundle, unchecked; an empty list if it is not signed.

    Raises:
        BundleError: the file of signatures is damaged, is a link, or is no file.
    """
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        return []
    content = read_small_file(folder, SIGNATURE_FILE, MAX_SIGNATURE_BYTES)
    try:
        return msgspec.json.decode(content, type=list[Signature])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is damaged: {error}; remove it, and sign the bundle again"
        ) from error


def check_signature(folder: Path, manifest: bytes, trust: Trust) -> Signature:
    """Checks that a trusted key signed a manifest, and returns the signature.

    Args:
        folder: the bundle.
        manifest: the bytes of its `manifest.json` that will be used.
        trust: which signatures are accepted.

    Raises:
        BundleError: no trusted key signed it, it was changed afterwards, or its version is too old.
        InputError: a key cannot be read.
        MissingDependencyError: `cryptography` is not installed.
    """
    trusted = {_hex(_public_key(path)) for path in trust.keys}
    signatures = signatures_of(folder)
    known = [signature for signature in signatures if signature.key in trusted]
    if not signatures:
        raise BundleError(f"{folder} is not signed; sign it where it was made: hybrid-deploy sign")
    if not known:
        raise BundleError(
            f"{folder} is signed by {_short(signatures)}, which is not trusted; trusted "
            f"{'is' if len(trusted) == 1 else 'are'} {', '.join(sorted(k[:8] for k in trusted))}"
        )
    valid = [signature for signature in known if _holds(signature, manifest)]
    if not valid:
        raise BundleError(
            f"{folder} was changed after {_short(known)} signed it, or the signature was; "
            "copy it again, or sign it again where it was made"
        )
    newest = max(valid, key=lambda signature: signature.version)
    if newest.version < trust.at_least:
        raise BundleError(
            f"{folder} has version {newest.version}, at least {trust.at_least} is required; "
            "install the newer bundle"
        )
    return newest


def _signed(manifest: bytes, version: int) -> bytes:
    """Returns the bytes that are signed: their purpose, the version and the manifest's SHA-256."""
    return _PURPOSE + version.to_bytes(8, "big") + hashlib.sha256(manifest).digest()


def _holds(signature: Signature, manifest: bytes) -> bool:
    """Returns whether a signature belongs to a manifest."""
    from cryptography.exceptions import InvalidSignature

    ed25519, _ = _library()
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.signature), _signed(manifest, signature.version))
    except (InvalidSignature, ValueError, OverflowError):
        return False
    return True


def _short(signatures: Sequence[Signature]) -> str:
    return ", ".join(f"key {signature.key[:8]}" for signature in signatures)


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()


def _private_key(path: Path) -> Ed25519PrivateKey:
    ed25519, serialization = _library()
    key = _load(path, lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{path} is no private Ed25519 key; make one: hybrid-deploy keygen FILE")
    _check_private(path)
    private: Ed25519PrivateKey = key
    return private


def _public_key(path: Path) -> Ed25519PublicKey:
    ed25519, serialization = _library()
    key = _load(path, serialization.load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{path} is no public Ed25519 key; give the file FILE.pub of keygen")
    public: Ed25519PublicKey = key
    return public


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


def _load(path: Path, load: Callable[[bytes], Any]) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    with path.open("rb") as file:
        content = file.read(_MAX_KEY_BYTES + 1)
    if len(content) > _MAX_KEY_BYTES:
        raise InputError(f"{path} is no key of keygen: it is larger than {_MAX_KEY_BYTES} bytes")
    if (count := content.count(_PEM_BEGIN)) > 1:
        raise InputError(f"{path} has {count} keys, one was expected; give each a file of its own")
    try:
        return load(content)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is no key of keygen: {error}") from error


def _library() -> tuple[ModuleType, ModuleType]:
    """Returns the modules `ed25519` and `serialization` of cryptography.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingDependencyError("cryptography", "sign") from error
    return ed25519, serialization
