"""The control groups that limit this process: a container's or a service's share of a machine."""

from __future__ import annotations

from pathlib import Path


def control_group_folders(root: Path, controller: str) -> list[Path]:
    """Returns the folders of this process's groups, each with its parents, of both versions.

    Args:
        root: where `proc` and `sys` lie.
        controller: `cpu` or `memory`.
    """
    folders = []
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        here = top / name.lstrip("/")
        folders += [here, *(parent for parent in here.parents if parent.is_relative_to(top))]
    return folders


def text_of(path: Path) -> str:
    """Returns what a file of the kernel says; nothing if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
