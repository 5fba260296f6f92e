"""The wheel: everything of ours, nothing of anyone else's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hybrid_deploy.bundle import open_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    tree = out / "tree"  # a copy, so that no earlier build's leftovers get in
    skipped = shutil.ignore_patterns(".*", "build", "dist", "quickstart", "*.egg-info")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skipped)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def modules_of_the_tree() -> set[str]:
    """Lists the source files under their places in the package; the links lead to the folders."""
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
    assert "hybrid_deploy/runtime/doctor_step.onnx" in names


def test_wheel_is_pure_and_licensed(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_visible_top_level_is_as_agreed() -> None:
    command = ["git", "ls-tree", "--name-only", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    visible = {name for name in done.stdout.split() if not name.startswith(".")}
    folders = {"calibration", "export", "hybrid_deploy", "runtime", "tests"}
    files = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    assert visible == folders | files


@pytest.mark.slow
def test_wheel_reads_in_a_clean_environment(wheel: Path, tiny_path: Path, tmp_path: Path) -> None:
    """Only the base install and ONNX Runtime: what a device has."""
    environment, bundle = tmp_path / "device", open_bundle(tiny_path)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    binaries = environment / "bin"
    constraints = ROOT / ".ci" / "constraints.txt"
    install = ["install", "--quiet", "--constraint", str(constraints), f"{wheel}[cpu]"]
    subprocess.run([str(binaries / "python"), "-m", "pip", *install], check=True)
    (sample,) = bundle.manifest.golden
    done = subprocess.run(
        [str(binaries / "hybrid-deploy"), "run", str(tiny_path), str(tiny_path / sample.file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{sample.text}\n", "", 0)
    listed = subprocess.run(
        [str(binaries / "python"), "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.lower()
    assert not {"torch", "onnx"} & {line.split("==")[0] for line in listed.splitlines()}
