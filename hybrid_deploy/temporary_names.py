"""The names of what is being written, which nobody but this toolkit gives to anything.

    .digits.bundle.staging-0123abcd89ef4567      base name, kind, eight random digits, their check
    hybrid-deploy-trial-0123abcd89ef4567         a scratch folder: purpose, random digits, check
    .digits.bundle.lock-89ef4567                 a lock: base name, check

What a killed process left is known by its name alone, and it is removed. So the name certifies
itself: its last eight digits are a hash of the rest, and a user's `.notes.staging-deadbeef` stays.
A mark inside a folder would not do: a kill may come before it is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Literal

Kind = Literal["staging", "retired", "writing", "linking"]
"""A folder that is filled, one that holds what was replaced, a file that is written, a link."""

_NAME = re.compile(
    r"\.(?P<base>.+)\.(?P<kind>staging|retired|writing|linking)"
    r"-(?P<random>[0-9a-f]{8})(?P<check>[0-9a-f]{8})",
    re.DOTALL,
)
_SCRATCH = re.compile(
    r"hybrid-deploy-(?P<purpose>[a-z]+)-(?P<random>[0-9a-f]{8})(?P<check>[0-9a-f]{8})"
)
_WORD = b"temporary of hybrid-deploy"


def temporary_name(base: str, kind: Kind) -> str:
    """Returns a new name for what will get the name `base`."""
    random = secrets.token_hex(4)
    return f".{base}.{kind}-{random}{_check(base, kind, random)}"


def is_temporary_name(name: str, base: str | None = None, kind: Kind | None = None) -> bool:
    """Returns whether `temporary_name` has made a name.

    Args:
        name: the name.
        base: for which base name it was made; None for any.
        kind: for which kind; None for any.
    """
    match = _NAME.fullmatch(name)
    return (
        match is not None
        and base in (None, match["base"])
        and kind in (None, match["kind"])
        and match["check"] == _check(match["base"], match["kind"], match["random"])
    )


def scratch_name(purpose: str) -> str:
    """Returns a new name for a scratch folder; the purpose is a word of small letters."""
    random = secrets.token_hex(4)
    return f"hybrid-deploy-{purpose}-{random}{_check(purpose, 'scratch', random)}"


def is_scratch_name(name: str, purpose: str) -> bool:
    """Returns whether `scratch_name` has made a name for this purpose."""
    match = _SCRATCH.fullmatch(name)
    return (
        match is not None
        and match["purpose"] == purpose
        and match["check"] == _check(purpose, "scratch", match["random"])
    )


def lock_name(base: str) -> str:
    """Returns the name of the lock for what has the name `base`; it is always the same one."""
    return f".{base}.lock-{_check(base, 'lock', '')}"


def temporaries_beside(target: Path, kind: Kind) -> list[Path]:
    """Returns the files, folders and links beside `target` that have a temporary name for it."""
    try:
        beside = list(target.parent.iterdir())
    except OSError:
        return []
    return [path for path in beside if is_temporary_name(path.name, target.name, kind)]


def _check(base: str, kind: str, random: str) -> str:
    parts = (_WORD, kind.encode(), random.encode(), os.fsencode(base))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]
