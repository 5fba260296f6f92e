"""Tests of the wheel: it holds every file of this package and no other file."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from tests.benchmarks.footprint import device
from tests.benchmarks.footprint.environments import ROOT, build_wheel, make_environment, run
from tests.benchmarks.footprint.page import Facts, failures


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def modules_of_the_tree() -> set[str]:
    """Returns the source files by their paths in the installed package."""
    names = set()
    for folder, package in (
        ("hybrid_deploy", "hybrid_deploy"),
        ("export", "hybrid_deploy/export"),
        ("runtime", "hybrid_deploy/runtime"),
        ("calibration", "hybrid_deploy/calibration"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            names.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return names


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hybrid_deploy"}
    assert modules_of_the_tree() == {name for name in names if name.endswith(".py")}
    assert "hybrid_deploy/py.typed" in names
    assert "hybrid_deploy/export/reference/digits-feature-map.safetensors" in names
    graphs = {name for name in names if name.endswith(".onnx")}
    assert graphs == {
        "hybrid_deploy/runtime/backends/onnxruntime/choose.onnx",
        "hybrid_deploy/runtime/doctor/float.onnx",
        "hybrid_deploy/runtime/doctor/int8.onnx",
        "hybrid_deploy/runtime/doctor/step.onnx",
    }


def test_wheel_is_pure_and_licensed(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_top_level_holds_the_agreed_files_and_folders() -> None:
    command = ["git", "ls-tree", "--name-only", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    visible = {name for name in done.stdout.split() if not name.startswith(".")}
    folders = {"calibration", "export", "hybrid_deploy", "runtime", "tests"}
    files = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    assert visible == folders | files


def test_wheel_works_in_a_clean_environment(wheel: Path, tiny_path: Path, tmp_path: Path) -> None:
    """A device has the base install and ONNX Runtime alone: `run` and the measurements work."""
    constraints = ROOT / ".ci" / "constraints.txt"
    requirements = ("--constraint", str(constraints), f"{wheel}[cpu]")
    python = make_environment(Path(sys.executable), tmp_path / "device", *requirements)
    (sample,) = open_bundle(tiny_path).manifest.golden
    read = run(python.with_name("hybrid-deploy"), "run", tiny_path, tiny_path / sample.file)
    assert read == f"{sample.text}\n"
    printed = run(python, device.__file__, "--processes", "1", tiny_path)
    facts = msgspec.json.decode(printed, type=Facts)
    assert failures({"here": facts}) == []
    assert [(row.variant, row.equal) for row in facts.readings] == [("fp32", 1)]
    assert not {"torch", "onnx"} & {package.name for package in facts.packages}
    (ours,) = (package for package in facts.packages if package.name == "hybrid-deploy")
    assert 1e6 < ours.file_bytes < 5.5e6, "the reference weights are 2.8 MB, the sources 2.1"
