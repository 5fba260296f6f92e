import os
from pathlib import Path

import pytest

from hybrid_deploy.runtime.doctor import cpu
from hybrid_deploy.runtime.doctor.check import Verdict
from hybrid_deploy.runtime.doctor.cpu import (
    Cpu,
    check_cores,
    check_cpu,
    check_governor,
    check_large_pages,
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


def test_cpuinfo_of_x86_and_arm() -> None:
    xeon = Cpu("Intel(R) Xeon(R) Processor @ 2.50GHz", ("AVX2", "AVX512", "AVX512-VNNI"))
    assert parse_cpuinfo(XEON) == xeon
    assert parse_cpuinfo(ORIN) == Cpu("Cortex-A78AE", ("NEON", "dotprod"))
    assert parse_cpuinfo(PI_4) == Cpu("Cortex-A72", ("NEON",))


def test_a_cpu_without_int8_products_gets_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", PI_4)
    check = check_cpu(tmp_path)
    assert (check.verdict, check.finding) == (Verdict.WARN, "Cortex-A72: NEON")
    assert check.remedy is not None and "hybrid-deploy compare" in check.remedy
    write(tmp_path, "proc/cpuinfo", ORIN)
    assert check_cpu(tmp_path).verdict is Verdict.OK


def test_a_limit_below_the_cores_names_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    unlimited = check_cores(tmp_path)
    assert (unlimited.verdict, unlimited.finding) == (Verdict.OK, "3 of 8 usable")
    monkeypatch.setattr(cpu, "cpu_limit", lambda root: 1.5)
    limited = check_cores(tmp_path)
    assert limited.finding == "3 of 8 usable, limited to 1.5 by a cgroup"
    assert limited.remedy is not None and limited.remedy.endswith("--threads 1")


def test_governor(tmp_path: Path) -> None:
    assert check_governor(tmp_path).finding == "not set by this system (no cpufreq)"
    path = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    write(tmp_path, path.format(0), "performance\n")
    assert check_governor(tmp_path).verdict is Verdict.OK
    write(tmp_path, path.format(1), "schedutil\n")
    assert check_governor(tmp_path).finding == "governor performance, schedutil"
    assert check_governor(tmp_path).verdict is Verdict.WARN


def test_large_pages(tmp_path: Path) -> None:
    assert check_large_pages(tmp_path).finding == "not offered by this kernel"
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    write(tmp_path, path, "always [madvise] never\n")
    offered = check_large_pages(tmp_path)
    assert (offered.verdict, offered.finding) == (Verdict.OK, "madvise")
    write(tmp_path, path, "always madvise [never]\n")
    assert check_large_pages(tmp_path).verdict is Verdict.WARN
