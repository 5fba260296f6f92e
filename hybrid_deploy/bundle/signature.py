"""Checks signatures of bundles: Ed25519 over the manifest, which has the hash of every file.

`signature.json` in the bundle holds one signature for each key that signed it. Signed are the
SHA-256 of `manifest.json` and a version number; so a change of any file, of the manifest or of the
version breaks every signature. Not signed are the names of the folder and of the keys.

Whoever trusts several keys can replace one by another: bundles signed by either are accepted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from hybrid_deploy.argument_checks import check_integer, paths_of, shown
from hybrid_deploy.bundle.bundle_file import read_small_file
from hybrid_deploy.bundle.paths import SIGNATURE_FILE
from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PURPOSE = b"hybrid_deploy bundle 1\n"  # so that no signature of other data is ever taken for one
_PEM_BEGIN = b"-----BEGIN "
_MAX_KEY_BYTES = 1 << 16

MAX_VERSION = (1 << 63) - 1
"""Largest version of a bundle."""

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

    Raises:
        UsageError: the keys are no list, or the version is no whole number from 0 on.
        InputError: a key is no path.
    """

    keys: Sequence[str | Path]
    at_least: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(paths_of(self.keys)))
        check_integer("at_least", self.at_least, 0, MAX_VERSION)


def check_trust(trust: object) -> None:
    """Checks that an argument is a `Trust`, or None.

    Raises:
        UsageError: it is something else.
    """
    if not (trust is None or isinstance(trust, Trust)):
        raise UsageError(f"trust must be a Trust((public_key,)) or None, got {shown(trust)}")


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
    trusted = {key_name(_public_key(path)) for path in map(Path, trust.keys)}
    signatures = signatures_of(folder)
    known = [signature for signature in signatures if signature.key in trusted]
    if not signatures:
        raise BundleError(f"{folder} is not signed; sign it where it was made: hybrid-deploy sign")
    if not known:
        raise BundleError(
            f"{folder} is signed by {_short(signatures)}, which is not trusted; trusted "
            f"{'is' if len(trusted) == 1 else 'are'} {', '.join(sorted(k[:8] for k in trusted))}"
        )
    valid = [signature for signature in known if belongs_to(signature, manifest)]
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


def signed_bytes(manifest: bytes, version: int) -> bytes:
    """Returns the bytes that are signed: their purpose, the version and the manifest's SHA-256."""
    return _PURPOSE + version.to_bytes(8, "big") + hashlib.sha256(manifest).digest()


def belongs_to(signature: Signature, manifest: bytes) -> bool:
    """Returns whether a signature belongs to a manifest."""
    from cryptography.exceptions import InvalidSignature

    ed25519, _ = library()
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.signature), signed_bytes(manifest, signature.version))
    except (InvalidSignature, ValueError, OverflowError):
        return False
    return True


def _short(signatures: Sequence[Signature]) -> str:
    return ", ".join(f"key {signature.key[:8]}" for signature in signatures)


def key_name(key: Ed25519PublicKey) -> str:
    """Returns the name of a public key in signatures: 64 hexadecimal digits."""
    return key.public_bytes_raw().hex()


def _public_key(path: Path) -> Ed25519PublicKey:
    ed25519, serialization = library()
    key = load_key(path, serialization.load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{path} is no public Ed25519 key; give the file FILE.pub of keygen")
    public: Ed25519PublicKey = key
    return public


def load_key(path: Path, load: Callable[[bytes], Any]) -> Any:
    """Returns the key in a file, which a function of cryptography makes of its content.

    Raises:
        InputError: the file is missing, or holds no key or several.
    """
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


def library() -> tuple[ModuleType, ModuleType]:
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
