"""How much memory a new process can have here: on Jetson the GPU shares it.

The kernel's `MemAvailable` is the machine's; a container or a service may have less, which its
control group says (cgroup v2: memory.max and memory.current; v1: memory.limit_in_bytes and
memory.usage_in_bytes). The page cache of a group counts as used there although it can be given
back, so `inactive_file` is taken off.
"""

from __future__ import annotations

import re
from pathlib import Path

_BYTES_PER_KB = 1024
_FILES = {
    "v2": ("memory.max", "memory.current"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Gives what is free for a new process; None where the system does not tell.

    Args:
        root: Where `proc` and `sys` lie.
    """
    limits = [_available(root), *_group_limits(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _available(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * _BYTES_PER_KB if found else None


def _group_limits(root: Path) -> list[int | None]:
    """Gives what each control group of this process leaves, its parents included."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = "v1" if controllers else "v2"
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = mount / name.lstrip("/")
        parents = [parent for parent in folder.parents if parent.is_relative_to(mount)]
        limits += [_left(group, version) for group in (folder, *parents)]
    return limits


def _left(group: Path, version: str) -> int | None:
    limit, used = (_text(group / file).strip() for file in _FILES[version])
    if not limit.isdecimal() or not used.isdecimal():
        return None  # no such group, or "max": no limit
    found = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    reclaimable = int(found[1]) if found else 0
    return max(0, int(limit) - int(used) + reclaimable)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
