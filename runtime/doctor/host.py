"""Checks of the system, Python, RAM, the cache folder and optional packages."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hybrid_deploy.cache_dir import CACHE_VARIABLE, cache_folder
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.cpu import ROOT
from hybrid_deploy.runtime.host.cgroups import ram_limits

_BYTES_PER_GB = 1e9
_MIN_FREE_BYTES = 1e9


@dataclass(frozen=True)
class OptionalPackage:
    """A package that some uses of the toolkit need.

    Attributes:
        name: name of the package on PyPI.
        extra: extra of hybrid-deploy that installs it.
        purpose: what the toolkit needs it for.
    """

    name: str
    extra: str
    purpose: str


OPTIONAL_PACKAGES = (
    OptionalPackage("tokenizers", "text", "text of models with a tokenizer of Hugging Face"),
    OptionalPackage("soundfile", "audio", "reads FLAC, OGG and MP3"),
    OptionalPackage("jiwer", "report", "error rates beside speed"),
    OptionalPackage("onnx", "calibrate", "calibrate and quantize; not needed on a device"),
    OptionalPackage("torch", "export", "export; not needed on a device"),
)


def check_system() -> Check:
    """Checks which operating system this is."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return Check("system", Verdict.OK, f"{name}, Linux {platform.release()}, {platform.machine()}")


def check_python() -> Check:
    """Checks the version of Python; warns if onnxruntime has no recent release for it."""
    text = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info >= (3, 11):
        return Check("Python", Verdict.OK, text)
    remedy = "onnxruntime ends at 1.23 (opset 23) on Python 3.10: export with --opset 21"
    return Check("Python", Verdict.WARN, text, remedy)


def check_ram(root: Path = ROOT, *, shared_with_gpu: bool = False) -> Check:
    """Checks the total and the free RAM, and the limit of the control groups.

    Args:
        root: folder that contains `proc` and `sys`.
        shared_with_gpu: whether the GPU shares the RAM.
    """
    kilobytes = {
        key: int(value.split()[0])
        for key, _, value in (
            line.partition(":") for line in (root / "proc/meminfo").read_text().splitlines()
        )
    }
    total_bytes, free_bytes = (kilobytes[key] * 1024 for key in ("MemTotal", "MemAvailable"))
    text = f"{_gb(free_bytes)} free of {_gb(total_bytes)}"
    if shared_with_gpu:
        text += ", shared with the GPU"
    limit_bytes = min((limit.limit_bytes for limit in ram_limits(root)), default=None)
    if limit_bytes is not None and limit_bytes < total_bytes:
        text += f", limited to {_gb(limit_bytes)} by a cgroup"
        free_bytes = min(free_bytes, limit_bytes)
    if free_bytes >= _MIN_FREE_BYTES:
        return Check("memory", Verdict.OK, text)
    remedy = (
        "close other programs: building engines takes some GB; export builds on another machine"
    )
    return Check("memory", Verdict.WARN, text, remedy)


def check_cache() -> Check:
    """Checks whether the folder of engines is writable, with a temporary file."""
    folder = cache_folder("engines")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    remedy = f"name a folder that you can write in ${CACHE_VARIABLE}"
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Check("cache", Verdict.FAILED, f"{folder} is not writable: {reason}", remedy)
    free_bytes = shutil.disk_usage(existing).free
    text = f"{folder}, {_gb(free_bytes)} free"
    if free_bytes >= _MIN_FREE_BYTES:
        return Check("cache", Verdict.OK, text)
    return Check("cache", Verdict.WARN, text, f"free some space there, or {remedy}")


def check_optional_package(package: OptionalPackage) -> Check:
    """Checks whether a package is installed, without importing it."""
    installed = installed_version(package.name)
    if installed is not None:
        return Check(package.name, Verdict.OK, f"{installed}: {package.purpose}")
    remedy = f"if you need it: pip install 'hybrid-deploy[{package.extra}]'"
    return Check(package.name, Verdict.MISSING, package.purpose, remedy)


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / _BYTES_PER_GB:.1f} GB"
