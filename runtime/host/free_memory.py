"""How much memory a new process can have here: on Jetson the GPU shares it.

The kernel's `MemAvailable` is the machine's; a container or a service may have less, which its
control group says (cgroup v2: memory.max and memory.current; v1: memory.limit_in_bytes and
memory.usage_in_bytes). The page cache of a group counts as used there although it can be given
back, so `inactive_file` is taken off.
"""

from __future__ import annotations

import re
from pathlib import Path

from hybrid_deploy.runtime.host.cgroups import control_group_folders, text_of

_BYTES_PER_KB = 1024
_FILES = (  # of version 2 and version 1; "max" is no limit
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Returns what is free for a new process; None where the system does not tell.

    Args:
        root: Where `proc` and `sys` lie.
    """
    limits = [_available(root), *map(_left, control_group_folders(root, "memory"))]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _available(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * _BYTES_PER_KB if found else None


def _left(group: Path) -> int | None:
    """Returns what a control group leaves; None where it has no limit."""
    for files in _FILES:
        limit, used = (text_of(group / file).strip() for file in files)
        if limit.isdecimal() and used.isdecimal():
            found = re.search(
                r"^inactive_file (\d+)$", text_of(group / "memory.stat"), re.MULTILINE
            )
            reclaimable = int(found[1]) if found else 0
            return max(0, int(limit) - int(used) + reclaimable)
    return None
