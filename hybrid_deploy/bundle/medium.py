"""Which mounted file system a folder is on, so that one that was mounted again is another one.

A file system that is not mounted can be changed without a trace in its times. Linux tells two
mounts apart by a number that it never gives twice (`stx_mnt_id` of statx(2) with
STATX_MNT_ID_UNIQUE, from Linux 6.8 on) until it boots again. The file system of `/` needs no such
number: it stays mounted until then, and who can change it can change this program as well.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATX_MNT_ID_UNIQUE = 0x4000  # linux/stat.h
_AT_FDCWD = -100  # fcntl.h
_STATX_BYTES = 256
_MASK_OFFSET, _MOUNT_OFFSET = 0, 0x90  # of stx_mask and stx_mnt_id in struct statx


class Medium(msgspec.Struct, frozen=True):
    """A file system from its mount on.

    Attributes:
        boot: id of the boot of this machine.
        device: number of the file system's device, `st_dev`.
        mount: unique number of the mount; None for the file system of `/`.
    """

    boot: str
    device: int
    mount: int | None


def medium_of(folder: Path) -> Medium | None:
    """Returns the medium of a folder; None where the system does not tell mounts apart."""
    if sys.platform != "linux":
        return None
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        device, root = folder.stat().st_dev, Path("/").stat().st_dev
    except OSError:
        return None
    if device == root:
        return Medium(boot, device, None)
    mount = _mount_of(folder)
    return None if mount is None else Medium(boot, device, mount)


def _mount_of(folder: Path) -> int | None:
    """Returns the unique number of the mount that a folder is in; None before Linux 6.8."""
    statx = getattr(ctypes.CDLL(None), "statx", None)  # in glibc from 2.28 on
    if statx is None:
        return None
    result = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(folder), 0, _STATX_MNT_ID_UNIQUE, result) != 0:
        return None
    (mask,) = struct.unpack_from("=I", result, _MASK_OFFSET)
    (mount,) = struct.unpack_from("=Q", result, _MOUNT_OFFSET)
    return mount if mask & _STATX_MNT_ID_UNIQUE else None
