"""What the CPU offers: int8, the cores that this process may use, its clock, large pages."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.host.cgroups import control_group_folders, text_of

ROOT = Path("/")

_X86 = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
}
_ARM = {"asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm", "sve": "SVE"}
_INT8 = {"AVX512-VNNI", "AVX-VNNI", "AMX-INT8", "dotprod", "i8mm"}
_ARM_PARTS = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",  # Jetson Orin
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",  # Jetson Thor
}


@dataclass(frozen=True)
class Cpu:
    """A CPU's name and those of its SIMD instructions that matter here."""

    model: str
    simd: tuple[str, ...]


def parse_cpuinfo(text: str) -> Cpu:
    """Reads /proc/cpuinfo of x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    part = fields.get("CPU part", "")
    model = fields.get("model name") or _ARM_PARTS.get(part) or platform.processor() or "unknown"
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Cpu(model, tuple(name for flag, name in (_X86 | _ARM).items() if flag in flags))


def cpu(root: Path = ROOT) -> Check:
    """Names the CPU and what it has for products of 8 bits."""
    found = parse_cpuinfo((root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    text = f"{found.model}: {', '.join(found.simd) or 'no SIMD that matters here'}"
    if _INT8.intersection(found.simd):
        return Check("CPU", Verdict.OK, text)
    remedy = (
        "it has no int8 dot products (VNNI, dotprod): measure before choosing int8: "
        "hybrid-deploy compare"
    )
    return Check("CPU", Verdict.WARN, text, remedy)


def cores(root: Path = ROOT) -> Check:
    """Counts the cores that this process may use, by its affinity and its control group."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limit = cpu_limit(root)
    text = f"{usable} of {present} usable"
    if limit is None or limit >= usable:
        return Check("cores", Verdict.OK, text)
    threads = max(1, int(limit))
    remedy = f"more threads than that stall each other: run and profile with --threads {threads}"
    return Check("cores", Verdict.WARN, f"{text}, limited to {limit:g} by a cgroup", remedy)


def cpu_limit(root: Path = ROOT) -> float | None:
    """Returns the smallest limit in cores of this process's control groups; None without one."""
    limits = []
    for folder in control_group_folders(root, "cpu"):
        quota, period = _first_line(folder / "cpu.max").partition(" ")[::2]  # version 2
        if not quota:
            quota = _first_line(folder / "cpu.cfs_quota_us")
            period = _first_line(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def governor(root: Path = ROOT) -> Check:
    """Says how Linux sets the clock of the CPU."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    names = sorted({_first_line(path) for path in root.glob(pattern)} - {""})
    if not names:
        return Check("CPU clock", Verdict.OK, "not set by this system (no cpufreq)")
    if names == ["performance"]:
        return Check("CPU clock", Verdict.OK, "governor performance")
    remedy = "timings will vary; before measuring: sudo cpupower frequency-set -g performance"
    return Check("CPU clock", Verdict.WARN, f"governor {', '.join(names)}", remedy)


def large_pages(root: Path = ROOT) -> Check:
    """Says whether Linux gives large pages to memory that asks for them."""
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    offered = _first_line(root / path).partition("[")[2].partition("]")[0]
    if offered != "never":
        return Check("large pages", Verdict.OK, offered or "not offered by this kernel")
    remedy = f"a token may take a tenth less time: echo madvise | sudo tee /{path}"
    return Check("large pages", Verdict.WARN, offered, remedy)


def _first_line(path: Path) -> str:
    return text_of(path).partition("\n")[0].strip()
