"""Checks of the CPU: its int8 instructions, usable cores, clock and large pages."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.host.cgroups import cpu_limit, read_kernel_file

ROOT = Path("/")
"""Folder that contains `proc`, `sys` and `etc`; tests pass another one."""

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
    """A CPU.

    Attributes:
        model: name of the model, such as `Cortex-A78AE`.
        simd: names of its SIMD instruction sets that speed up a model, such as `AVX2`.
    """

    model: str
    simd: tuple[str, ...]


def parse_cpuinfo(text: str) -> Cpu:
    """Returns the CPU that /proc/cpuinfo describes, on x86 or ARM."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    part = fields.get("CPU part", "")
    model = fields.get("model name") or _ARM_PARTS.get(part) or platform.processor() or "unknown"
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return Cpu(model, tuple(name for flag, name in (_X86 | _ARM).items() if flag in flags))


def check_cpu(root: Path = ROOT) -> Check:
    """Checks the CPU; warns if it has no int8 dot products."""
    cpu = parse_cpuinfo((root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    text = f"{cpu.model}: {', '.join(cpu.simd) or 'no SIMD that matters here'}"
    if _INT8.intersection(cpu.simd):
        return Check("CPU", Verdict.OK, text)
    remedy = (
        "it has no int8 dot products (VNNI, dotprod): measure before choosing int8: "
        "hybrid-deploy compare"
    )
    return Check("CPU", Verdict.WARN, text, remedy)


def check_cores(root: Path = ROOT) -> Check:
    """Checks how many cores this process may use, by its affinity and its control groups."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limit = cpu_limit(root)
    text = f"{usable} of {present} usable"
    if limit is None or limit >= usable:
        return Check("cores", Verdict.OK, text)
    threads = max(1, int(limit))
    remedy = f"more threads than that stall each other: run and profile with --threads {threads}"
    return Check("cores", Verdict.WARN, f"{text}, limited to {limit:g} by a cgroup", remedy)


def check_governor(root: Path = ROOT) -> Check:
    """Checks how Linux sets the clock of the CPU; warns if timings will vary."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
    names = sorted({read_kernel_file(path) for path in root.glob(pattern)} - {""})
    if not names:
        return Check("CPU clock", Verdict.OK, "not set by this system (no cpufreq)")
    if names == ["performance"]:
        return Check("CPU clock", Verdict.OK, "governor performance")
    remedy = "timings will vary; before measuring: sudo cpupower frequency-set -g performance"
    return Check("CPU clock", Verdict.WARN, f"governor {', '.join(names)}", remedy)


def check_large_pages(root: Path = ROOT) -> Check:
    """Checks whether Linux moves RAM onto large pages on request."""
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    setting = read_kernel_file(root / path).partition("[")[2].partition("]")[0]
    if setting != "never":
        return Check("large pages", Verdict.OK, setting or "not offered by this kernel")
    remedy = f"a token may take a tenth less time: echo madvise | sudo tee /{path}"
    return Check("large pages", Verdict.WARN, setting, remedy)
