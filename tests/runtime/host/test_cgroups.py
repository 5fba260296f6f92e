"""Limits of control groups, read from files in the formats of both versions."""

from __future__ import annotations

from pathlib import Path

from hybrid_deploy.runtime.host.cgroups import RamLimit, cpu_limit, ram_limits


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_cpu_limit_of_version_2_is_the_smallest_of_a_group_and_its_parents(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/docker/box\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/docker/box/cpu.max", "max 100000\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/docker/cpu.max", "150000 100000\n")
    assert cpu_limit(tmp_path) == 1.5


def test_cpu_limit_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n1:cpu,cpuacct:/box\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "200000\n")
    assert cpu_limit(tmp_path) == 2


def test_a_huge_number_in_version_1_is_no_ram_limit(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/box\n")
    limit = "sys/fs/cgroup/memory/box/memory.limit_in_bytes"
    write(tmp_path, limit, "9223372036854771712\n")
    assert ram_limits(tmp_path) == []
    write(tmp_path, limit, "4000000000\n")
    assert ram_limits(tmp_path) == [RamLimit(4_000_000_000, free_bytes=None)]
