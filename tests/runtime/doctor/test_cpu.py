import os
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor import cpu as doctor_cpu
from hybrid_deploy.runtime.doctor.check import Verdict
from hybrid_deploy.runtime.doctor.cpu import (
    Cpu,
    cores,
    cpu,
    cpu_limit,
    governor,
    large_pages,
    parse_cpuinfo,
)

XEON = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
flags\t\t: fpu vme sse4_2 avx f16c avx2 avx512f avx512dq avx512_vnni

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor @ 2.50GHz
flags\t\t: fpu
"""
ORIN = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimddp uscat
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd42
"""
PI_4 = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08
"""


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_cpus_by_their_cpuinfo() -> None:
    xeon = Cpu("Intel(R) Xeon(R) Processor @ 2.50GHz", ("AVX2", "AVX512", "AVX512-VNNI"))
    assert parse_cpuinfo(XEON) == xeon
    assert parse_cpuinfo(ORIN) == Cpu("Cortex-A78AE", ("NEON", "dotprod"))
    assert parse_cpuinfo(PI_4) == Cpu("Cortex-A72", ("NEON",))


def test_a_cpu_without_int8_products_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", PI_4)
    found = cpu(tmp_path)
    assert (found.verdict, found.found) == (Verdict.WARN, "Cortex-A72: NEON")
    assert found.remedy is not None and "hybrid-deploy compare" in found.remedy
    write(tmp_path, "proc/cpuinfo", ORIN)
    assert cpu(tmp_path).verdict is Verdict.OK


def test_limit_of_cgroup_version_2_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/docker/box\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/docker/box/cpu.max", "max 100000\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/docker/cpu.max", "150000 100000\n")
    assert cpu_limit(tmp_path) == 1.5


def test_limit_of_cgroup_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/\n1:cpu,cpuacct:/box\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert cpu_limit(tmp_path) is None
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "200000\n")
    assert cpu_limit(tmp_path) == 2


def test_a_limit_below_the_cores_names_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (cores(tmp_path).verdict, cores(tmp_path).found) == (Verdict.OK, "3 of 8 usable")
    monkeypatch.setattr(doctor_cpu, "cpu_limit", lambda root: 1.5)
    limited = cores(tmp_path)
    assert limited.found == "3 of 8 usable, limited to 1.5 by a cgroup"
    assert limited.remedy is not None and limited.remedy.endswith("--threads 1")


def test_governor(tmp_path: Path) -> None:
    assert governor(tmp_path).found == "not set by this system (no cpufreq)"
    place = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    write(tmp_path, place.format(0), "performance\n")
    assert governor(tmp_path).verdict is Verdict.OK
    write(tmp_path, place.format(1), "schedutil\n")
    assert governor(tmp_path).found == "governor performance, schedutil"
    assert governor(tmp_path).verdict is Verdict.WARN


def test_large_pages(tmp_path: Path) -> None:
    assert large_pages(tmp_path).found == "not offered by this kernel"
    place = "sys/kernel/mm/transparent_hugepage/enabled"
    write(tmp_path, place, "always [madvise] never\n")
    assert (large_pages(tmp_path).verdict, large_pages(tmp_path).found) == (Verdict.OK, "madvise")
    write(tmp_path, place, "always madvise [never]\n")
    assert large_pages(tmp_path).verdict is Verdict.WARN
