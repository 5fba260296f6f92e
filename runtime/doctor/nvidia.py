"""What NVIDIA's own tools and files say: GPU, driver, JetPack, power mode."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.runtime.doctor import external_tools as doctor_tools
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.cpu import ROOT
from hybrid_deploy.runtime.doctor.external_tools import run_tool
from hybrid_deploy.runtime.doctor.host import installed_version
from hybrid_deploy.runtime.doctor.isolated_trial import Gpu, Trial

_SMI_FIELDS = "name,driver_version,memory.total,memory.free,power.limit,power.max_limit"
_OLDEST_L4T = (36, 4)  # JetPack 6.1, the first with TensorRT 10.3
_NVIDIA_PCI = "0x10de"
_OLDEST_CAPABILITY = 7.5
_DRIVERS = {11: "450", 12: "525", 13: "580"}
"""The oldest Linux driver of each major CUDA (CUDA Compatibility guide, minor version rules)."""


@dataclass(frozen=True)
class SmiGpu:
    """One line of nvidia-smi; what it does not know, as on a Jetson, is None."""

    name: str
    driver: str
    memory_mib: float | None
    free_mib: float | None
    power_limit_w: float | None
    power_max_w: float | None


@dataclass(frozen=True)
class L4t:
    """A release of Jetson Linux, `36.4.3`."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse_smi(text: str) -> list[SmiGpu]:
    """Reads `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        SmiGpu(row[0], row[1], *(_number(cell) for cell in row[2:]))
        for row in rows
        if len(row) == len(_SMI_FIELDS.split(","))
    ]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None  # [N/A], [Not Supported]


def parse_tegra_release(text: str) -> L4t | None:
    """Reads /etc/nv_tegra_release."""
    found = re.search(r"R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?", text)
    return L4t(int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def parse_nvpmodel(text: str) -> str | None:
    """Returns the power mode that `nvpmodel -q` names."""
    found = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def parse_jetpack(text: str) -> str | None:
    """Returns the version in `installed 6.2.1+b38`, what dpkg-query was asked for."""
    status, _, version = text.strip().partition(" ")
    return version.partition("+")[0] if status == "installed" and version else None


def is_jetson(root: Path = ROOT) -> bool:
    """Says whether this is a Jetson, also inside a container."""
    try:
        if b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes():
            return True
    except OSError:
        pass  # no device tree: not a board, or a container
    return (root / "etc/nv_tegra_release").exists()


def jetson(root: Path = ROOT) -> Check:
    """Names the board, its Jetson Linux and its JetPack."""
    model = root / "proc/device-tree/model"
    board = model.read_text().strip("\0\n ") if model.exists() else "Jetson"
    release = root / "etc/nv_tegra_release"
    l4t = parse_tegra_release(release.read_text()) if release.exists() else None
    if l4t is None:
        remedy = "in a container: start it with --runtime nvidia, from an image for Jetson"
        return Check("Jetson", Verdict.WARN, f"{board}, no /etc/nv_tegra_release", remedy)
    text = f"{board}, L4T {l4t}"
    if (l4t.major, l4t.minor) < _OLDEST_L4T:
        remedy = "its TensorRT is older than 10.3: install JetPack 6.1 or newer"
        return Check("Jetson", Verdict.WARN, text, remedy)
    version = _jetpack()
    if version is None:
        remedy = "for CUDA and TensorRT of JetPack: sudo apt install nvidia-jetpack"
        return Check("Jetson", Verdict.WARN, f"{text}, package nvidia-jetpack not found", remedy)
    return Check("Jetson", Verdict.OK, f"{text}, JetPack {version}")


def _jetpack() -> str | None:
    if shutil.which("dpkg-query") is None:
        return None
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "nvidia-jetpack"]
    return parse_jetpack(run_tool(query, doctor_tools.TOOL_SECONDS).output)


def power_mode() -> Check:
    """Asks a Jetson for its power mode."""
    done = run_tool(["nvpmodel", "-q"], doctor_tools.TOOL_SECONDS)
    mode = parse_nvpmodel(done.output)
    if mode is None:
        remedy = "run by hand: sudo nvpmodel -q"
        return Check("power mode", Verdict.WARN, f"nvpmodel: {done.last_line}", remedy)
    if mode.startswith("MAXN"):
        return Check("power mode", Verdict.OK, mode)
    remedy = "timings hold for this mode; modes: nvpmodel -p --verbose; set: sudo nvpmodel -m ID"
    return Check("power mode", Verdict.WARN, mode, remedy)


def gpu(trial: Trial, *, jetson: bool, root: Path = ROOT) -> Check:
    """Judges what the driver library said."""
    found = trial.gpu
    if found is not None:
        memory = "shared memory" if found.shares_memory else f"{found.memory_bytes / 1e9:.1f} GB"
        text = f"{found.name}, sm_{found.capability.replace('.', '')}, {memory}, CUDA {found.cuda}"
        if float(found.capability) >= _OLDEST_CAPABILITY:
            return Check("GPU", Verdict.OK, text)
        remedy = "TensorRT begins at sm_75 (Turing): use ONNX Runtime on the CPU here"
        return Check("GPU", Verdict.WARN, text, remedy)
    text = trial.error or "no GPU"
    if jetson:
        remedy = "in a container: start it with --runtime nvidia; otherwise flash JetPack again"
        return Check("GPU", Verdict.FAILED, text, remedy)
    if _on_the_bus(root):
        remedy = f"a GPU is on the PCI bus: install NVIDIA's driver {_DRIVERS[13]} or newer, reboot"
        return Check("GPU", Verdict.FAILED, text, remedy)
    remedy = "none needed for a CPU; engines for other machines build here: --target rtx:sm_86"
    return Check("GPU", Verdict.MISSING, text, remedy)


def _on_the_bus(root: Path) -> bool:
    """Says whether a display controller (PCI class 03) of NVIDIA is there."""
    return any(
        (device / "vendor").read_text().strip() == _NVIDIA_PCI
        and (device / "class").read_text().startswith("0x03")
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def driver() -> Check:
    """Asks nvidia-smi for the driver, the free memory and the power limit of every GPU."""
    query = ["nvidia-smi", f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
    done = run_tool(query, doctor_tools.TOOL_SECONDS)
    gpus = parse_smi(done.output) if done.code == 0 else []
    if not gpus:
        remedy = "run nvidia-smi by hand; after an update of the driver: reboot"
        return Check("driver", Verdict.FAILED, f"nvidia-smi: {done.last_line}", remedy)
    text = f"{gpus[0].driver}; " + "; ".join(map(_smi_text, gpus))
    limited = any((one.power_limit_w or 0) < (one.power_max_w or 0) for one in gpus)
    if not limited:
        return Check("driver", Verdict.OK, text)
    remedy = "timings hold for this power limit; raise it with: sudo nvidia-smi -pl WATTS"
    return Check("driver", Verdict.WARN, text, remedy)


def _smi_text(gpu: SmiGpu) -> str:
    parts = [gpu.name]
    if gpu.memory_mib is not None and gpu.free_mib is not None:
        parts.append(f"{gpu.free_mib:.0f} of {gpu.memory_mib:.0f} MiB free")
    if gpu.power_limit_w is not None:
        most = "" if gpu.power_max_w is None else f" of {gpu.power_max_w:.0f}"
        parts.append(f"limit {gpu.power_limit_w:.0f}{most} W")
    return ", ".join(parts)


def cuda_of_package(package: str) -> int | None:
    """Returns the major CUDA that the installed wheels of a TensorRT are for, by their names."""
    majors = [major for major in _DRIVERS if installed_version(f"{package}-cu{major}") is not None]
    return max(majors, default=None)


def too_old_driver(gpu: Gpu | None, needed: int | None) -> str | None:
    """Says what to do where the driver does not serve the CUDA that a library needs."""
    if gpu is None or needed is None or int(gpu.cuda.partition(".")[0]) >= needed:
        return None
    newer = _DRIVERS.get(needed, "a newer one")
    return f"the driver serves CUDA {gpu.cuda}, it needs CUDA {needed}: install driver {newer}+"
