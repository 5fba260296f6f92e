"""The CPU and RAM limits of this process's control groups: its share of a machine in a container.

Both versions of control groups are read (Linux: admin-guide/cgroup-v1 and cgroup-v2.rst). The limit
of a group holds for all groups below it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # version 1 writes a huge number where a group has no limit
_RAM_FILES = (  # limit and use, in version 2 and in version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class RamLimit:
    """The RAM limit of one control group.

    Attributes:
        limit_bytes: largest RAM of all processes of the group together.
        free_bytes: unused part of the limit; page cache that the kernel can free counts as unused.
            None where the kernel does not state the use.
    """

    limit_bytes: int
    free_bytes: int | None


def cpu_limit(root: Path) -> float | None:
    """Returns the smallest CPU limit of this process's control groups, in cores; None without one.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    limits = []
    for folder in control_group_folders(root, "cpu"):
        quota, period = read_kernel_file(folder / "cpu.max").partition(" ")[::2]  # version 2
        if not quota:
            quota = read_kernel_file(folder / "cpu.cfs_quota_us")
            period = read_kernel_file(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def ram_limits(root: Path) -> list[RamLimit]:
    """Returns the RAM limits of this process's control groups; groups without a limit are left out.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    limits = []
    for folder in control_group_folders(root, "memory"):
        for limit_file, usage_file in _RAM_FILES:
            limit = read_kernel_file(folder / limit_file)
            if limit.isdecimal() and int(limit) < _UNLIMITED_BYTES:  # version 2 writes "max"
                limits.append(RamLimit(int(limit), _free_bytes(folder, int(limit), usage_file)))
    return limits


def control_group_folders(root: Path, controller: str) -> list[Path]:
    """Returns the folders of this process's control groups and of their parents, of both versions.

    Args:
        root: folder that contains `proc` and `sys`.
        controller: `cpu` or `memory`.
    """
    folders = []
    for line in read_kernel_file(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = top / name.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(top))]
    return folders


def read_kernel_file(path: Path) -> str:
    """Returns the stripped text of a file of the kernel; an empty text if the file is absent."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _free_bytes(folder: Path, limit_bytes: int, usage_file: str) -> int | None:
    used = read_kernel_file(folder / usage_file)
    if not used.isdecimal():
        return None
    statistics = read_kernel_file(folder / "memory.stat")
    inactive = re.search(r"^inactive_file (\d+)$", statistics, re.MULTILINE)
    return max(0, limit_bytes - int(used) + (int(inactive[1]) if inactive else 0))
