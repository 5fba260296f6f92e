"""Results that a later run may use again: one file for each model, with what made it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from tests.models.zoo.check import Result

_ROOT = Path(__file__).parents[4]
_SOURCES = ("hybrid_deploy", "export", "calibration", "runtime", "tests/models")
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx", "transformers")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a result depends on: results of two runs stand in one table only if this is equal.

    Attributes:
        sources: SHA-256 of the exporter, the runtime and the models.
        machine: processor, number of cores and Python version.
        packages: packages with their versions.
        opsets: opsets that the models were exported with.
        tensorrt: whether the step was built for TensorRT.
    """

    sources: str
    machine: str
    packages: str
    opsets: tuple[int, ...]
    tensorrt: bool


@dataclasses.dataclass(frozen=True)
class Dated:
    """A result and the day of its check, as `2026-11-28`."""

    result: Result
    day: str


class KeptResults:
    """A folder of results; those of another origin are as good as missing.

    Args:
        folder: folder of the files; None keeps nothing.
        origin: origin of the results of this run.
    """

    def __init__(self, folder: Path | None, origin: Origin) -> None:
        self._folder, self._origin = folder, origin

    def load(self, name: str) -> Dated | None:
        """Returns the kept result of a model; None if there is none of this origin."""
        path = self._path(name)
        if path is None or not path.is_file():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["origin"] != json.loads(json.dumps(dataclasses.asdict(self._origin))):
            return None
        fields = kept["result"]
        fields["older"] = {int(opset): verdict for opset, verdict in fields["older"].items()}
        return Dated(Result(**fields), kept["day"])

    def keep(self, result: Result) -> Dated:
        """Writes a result of today, and returns it."""
        dated = Dated(result, time.strftime("%Y-%m-%d"))
        path = self._path(result.name)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"origin": dataclasses.asdict(self._origin), **dataclasses.asdict(dated)}
            path.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        return dated

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.json"


def origin(opsets: Sequence[int], *, tensorrt: bool) -> Origin:
    """Returns the origin of results that are made here and now."""
    packages = ", ".join(f"{name} {v}" for name in _PACKAGES if (v := _version(name)))
    machine = f"{_cpu()}, Python {platform.python_version()}"
    return Origin(_digest(_ROOT), machine, packages, tuple(opsets), tensorrt)


def _digest(root: Path) -> str:
    """Returns the SHA-256 of all Python files of the sources, with their paths."""
    digest = hashlib.sha256()
    for path in sorted({path for top in _SOURCES for path in (root / top).rglob("*.py")}):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()
