"""How much RAM a new process can have here; on a Jetson the GPU shares it.

The kernel's `MemAvailable` holds for the whole machine. A container or a service may have less: its
control groups limit it. The page cache counts as used in a control group although the kernel frees
it when RAM is short, so `inactive_file` of the group counts as free here.
"""

from __future__ import annotations

import re
from pathlib import Path

from hybrid_deploy.runtime.host.cgroups import ram_limits, read_kernel_file

_BYTES_PER_KB = 1024


def free_ram_bytes(root: Path = Path("/")) -> int | None:
    """Returns the RAM that a new process can have, in bytes; None where the kernel states none.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    candidates = [_available_bytes(root), *(limit.free_bytes for limit in ram_limits(root))]
    return min((size for size in candidates if size is not None), default=None)


def _available_bytes(root: Path) -> int | None:
    meminfo = read_kernel_file(root / "proc/meminfo")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) * _BYTES_PER_KB if match else None
