"""Measures an installed hybrid_deploy: sizes, import times, and tokens of the golden samples.

It imports the standard library alone, so that any device runs it in the Python to be measured:

    python device.py digits.bundle > facts.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROCESSES = 10
STATEMENTS = (
    "import numpy",
    "import hybrid_deploy.runtime",
    "from hybrid_deploy import load_session",
    "import hybrid_deploy.runtime.backends.onnxruntime.backend",
)
UNWANTED = ("torch", "onnx", "click", "rich", "PIL", "filelock", "tokenizers")
INSTALLERS = {"pip", "setuptools", "wheel", "_distutils_hack", "distutils-precedence.pth"}
_TIMED = """import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
loaded = [name for name in {unwanted} if name in sys.modules]
print(json.dumps([1e3 * wall, 1e3 * cpu, loaded]))"""


def facts(bundles: list[Path], processes: int) -> dict[str, Any]:
    """Returns all measurements of this Python as JSON values.

    Args:
        bundles: folders of bundles whose golden samples are decoded.
        processes: number of fresh processes that time each import.
    """
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": packages(Path(sysconfig.get_path("purelib"))),
        "imports": [
            time_import(statement, processes)
            for statement in STATEMENTS
            if _can_be_imported(statement)
        ],
        "readings": [row for bundle in bundles for row in readings(bundle)],
    }


def packages(site: Path) -> list[dict[str, Any]]:
    """Measures the size of every installed package, without pip and other installers.

    Returns:
        name, version, file_bytes and bytecode_bytes of each package, largest first. The row "other"
        counts the files that belong to no package.
    """
    rows, recorded = [], set()
    for distribution in importlib.metadata.distributions(path=[str(site)]):
        files = {
            Path(str(distribution.locate_file(file))).resolve() for file in distribution.files or ()
        }
        recorded |= files
        if distribution.metadata["Name"] not in INSTALLERS:
            inside = (file for file in files if file.is_relative_to(site.resolve()))
            rows.append(_package_row(distribution.metadata["Name"], distribution.version, inside))
    installed = (file.resolve() for file in _installed_files(site))
    rows.append(_package_row("other", "", (file for file in installed if file not in recorded)))
    return sorted(rows, key=lambda row: -row["file_bytes"])


def time_import(statement: str, processes: int) -> dict[str, Any]:
    """Returns the median wall and CPU time of an import, and the unneeded packages it loads."""
    code = _TIMED.format(statement=statement, unwanted=UNWANTED)
    runs = [json.loads(_run("-c", code).stdout) for _ in range(processes + 1)][1:]
    wall_ms, cpu_ms, loaded = zip(*runs, strict=True)
    return {
        "statement": statement,
        "wall_ms": statistics.median(wall_ms),
        "cpu_ms": statistics.median(cpu_ms),
        "unwanted": loaded[0],
    }


def readings(bundle: Path) -> list[dict[str, Any]]:
    """Returns the verdict of `hybrid-deploy verify` on every variant's golden samples."""
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    variants = document["manifest"]["variants"]
    opsets = {name: variant["opset"] for name, variant in variants.items()}
    path = str(bundle.resolve())
    done = _run("-m", "hybrid_deploy", "verify", path, "--format", "json")
    if not done.stdout:
        error = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        return [{"variant": "fp32", "opset": opsets["fp32"], "verdict": error}]
    rows = json.loads(done.stdout.replace(path, bundle.name))
    return [row | {"opset": opsets[row["variant"]]} for row in rows]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python in an empty folder, where it imports installed packages only."""
    hidden = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


def _can_be_imported(statement: str) -> bool:
    return "onnxruntime" not in statement or importlib.util.find_spec("onnxruntime") is not None


def _package_row(name: str, version: str, files: Iterator[Path]) -> dict[str, Any]:
    file_bytes = bytecode_bytes = 0
    for file in filter(Path.is_file, files):
        if file.suffix == ".pyc":
            bytecode_bytes += file.stat().st_size
        else:
            file_bytes += file.stat().st_size
    sizes = {"file_bytes": file_bytes, "bytecode_bytes": bytecode_bytes}
    return {"name": name, "version": version, **sizes}


def _installed_files(site: Path) -> Iterator[Path]:
    for top in site.iterdir():
        if top.name not in INSTALLERS and not top.name.startswith(("pip-", "setuptools-")):
            yield from (top.rglob("*") if top.is_dir() else [top])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures and tries an install.")
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    options = parser.parse_args()
    print(json.dumps(facts(options.bundles, options.processes), indent=1))
