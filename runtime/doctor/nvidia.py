"""Checks of the GPU, its driver, JetPack and the power mode, with NVIDIA's own tools and files."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.runtime.doctor import external_tools
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
"""Oldest Linux driver of each major CUDA version (CUDA Compatibility guide, "minor version")."""


@dataclass(frozen=True)
class SmiGpu:
    """One GPU, as nvidia-smi lists it; nvidia-smi leaves some numbers out on a Jetson.

    Attributes:
        name: name of the model.
        driver: version of the driver.
        memory_mib: size of the GPU's memory in MiB.
        free_mib: unused part of that memory in MiB.
        power_limit_w: power limit in force, in watts.
        power_max_w: highest power limit that can be set, in watts.
    """

    name: str
    driver: str
    memory_mib: float | None
    free_mib: float | None
    power_limit_w: float | None
    power_max_w: float | None


@dataclass(frozen=True)
class L4t:
    """A release of Jetson Linux (L4T), such as 36.4.3."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse_smi(text: str) -> list[SmiGpu]:
    """Returns the GPUs in the output of `nvidia-smi --format=csv,noheader,nounits`."""
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
    """Returns the release in /etc/nv_tegra_release; None if the text names none."""
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?", text)
    return L4t(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def parse_nvpmodel(text: str) -> str | None:
    """Returns the power mode in the output of `nvpmodel -q`; None if it names none."""
    match = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else None


def parse_jetpack(text: str) -> str | None:
    """Returns the version in the answer of dpkg-query, such as `installed 6.2.1+b38`."""
    status, _, version = text.strip().partition(" ")
    return version.partition("+")[0] if status == "installed" and version else None


def is_jetson(root: Path = ROOT) -> bool:
    """Returns whether this machine is a Jetson; a container on a Jetson is recognised too."""
    try:
        if b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes():
            return True
    except OSError:
        pass  # without a device tree: no Jetson, or a container on one
    return (root / "etc/nv_tegra_release").exists()


def check_jetson(root: Path = ROOT) -> Check:
    """Checks the board, its Jetson Linux and its JetPack."""
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
    return parse_jetpack(run_tool(query, external_tools.TOOL_SECONDS).output)


def check_power_mode() -> Check:
    """Checks the power mode of a Jetson; warns below the highest mode."""
    result = run_tool(["nvpmodel", "-q"], external_tools.TOOL_SECONDS)
    mode = parse_nvpmodel(result.output)
    if mode is None:
        remedy = "run by hand: sudo nvpmodel -q"
        return Check("power mode", Verdict.WARN, f"nvpmodel: {result.last_line}", remedy)
    if mode.startswith("MAXN"):
        return Check("power mode", Verdict.OK, mode)
    remedy = "timings hold for this mode; modes: nvpmodel -p --verbose; set: sudo nvpmodel -m ID"
    return Check("power mode", Verdict.WARN, mode, remedy)


def check_gpu(trial: Trial, *, jetson: bool, root: Path = ROOT) -> Check:
    """Checks the GPU that the driver library describes.

    Args:
        trial: a trial of kind `gpu`.
        jetson: whether this machine is a Jetson.
        root: folder that contains `sys`.
    """
    gpu = trial.gpu
    if gpu is not None:
        size = "shared memory" if gpu.shares_memory else f"{gpu.memory_bytes / 1e9:.1f} GB"
        text = f"{gpu.name}, sm_{gpu.capability.replace('.', '')}, {size}, CUDA {gpu.cuda}"
        if float(gpu.capability) >= _OLDEST_CAPABILITY:
            return Check("GPU", Verdict.OK, text)
        remedy = "TensorRT begins at sm_75 (Turing): use ONNX Runtime on the CPU here"
        return Check("GPU", Verdict.WARN, text, remedy)
    text = trial.error or "no GPU"
    if jetson:
        remedy = "in a container: start it with --runtime nvidia; otherwise flash JetPack again"
        return Check("GPU", Verdict.FAILED, text, remedy)
    if _is_on_pci_bus(root):
        remedy = f"a GPU is on the PCI bus: install NVIDIA's driver {_DRIVERS[13]} or newer, reboot"
        return Check("GPU", Verdict.FAILED, text, remedy)
    remedy = "none needed for a CPU; engines for other machines build here: --target rtx:sm_86"
    return Check("GPU", Verdict.MISSING, text, remedy)


def _is_on_pci_bus(root: Path) -> bool:
    """Returns whether the PCI bus lists a display controller (class 03) of NVIDIA."""
    return any(
        (device / "vendor").read_text().strip() == _NVIDIA_PCI
        and (device / "class").read_text().startswith("0x03")
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def check_driver() -> Check:
    """Checks the driver, and the free memory and power limit of every GPU, with nvidia-smi."""
    query = ["nvidia-smi", f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader,nounits"]
    result = run_tool(query, external_tools.TOOL_SECONDS)
    gpus = parse_smi(result.output) if result.exit_code == 0 else []
    if not gpus:
        remedy = "run nvidia-smi by hand; after an update of the driver: reboot"
        return Check("driver", Verdict.FAILED, f"nvidia-smi: {result.last_line}", remedy)
    text = f"{gpus[0].driver}; " + "; ".join(map(_smi_text, gpus))
    limited = any((gpu.power_limit_w or 0) < (gpu.power_max_w or 0) for gpu in gpus)
    if not limited:
        return Check("driver", Verdict.OK, text)
    remedy = "timings hold for this power limit; raise it with: sudo nvidia-smi -pl WATTS"
    return Check("driver", Verdict.WARN, text, remedy)


def _smi_text(gpu: SmiGpu) -> str:
    parts = [gpu.name]
    if gpu.memory_mib is not None and gpu.free_mib is not None:
        parts.append(f"{gpu.free_mib:.0f} of {gpu.memory_mib:.0f} MiB free")
    if gpu.power_limit_w is not None:
        maximum = "" if gpu.power_max_w is None else f" of {gpu.power_max_w:.0f}"
        parts.append(f"limit {gpu.power_limit_w:.0f}{maximum} W")
    return ", ".join(parts)


def cuda_major_of_package(package: str) -> int | None:
    """Returns the major CUDA version in the names of a TensorRT's wheels; None if none is here."""
    majors = [major for major in _DRIVERS if installed_version(f"{package}-cu{major}") is not None]
    return max(majors, default=None)


def driver_remedy(gpu: Gpu | None, needed: int | None) -> str | None:
    """Returns the remedy for a driver that is too old for a library.

    None if the driver is new enough, or if one of the two CUDA versions is unknown.

    Args:
        gpu: the GPU, with the CUDA version that its driver supports; None without a GPU.
        needed: major CUDA version of the library; None if it is unknown.
    """
    if gpu is None or needed is None or int(gpu.cuda.partition(".")[0]) >= needed:
        return None
    install = f"driver {_DRIVERS[needed]}+" if needed in _DRIVERS else "a newer driver"
    return (
        f"the driver supports CUDA {gpu.cuda}, the library needs CUDA {needed}: install {install}"
    )
