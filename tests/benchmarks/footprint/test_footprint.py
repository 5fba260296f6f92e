"""Tests of the size counts and the faults; tests/test_packaging.py uses a clean environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.footprint.device import UNWANTED, packages
from tests.benchmarks.footprint.environments import run
from tests.benchmarks.footprint.page import Facts, Import, Package, Reading, failures, page

SMALL = Package("numpy", "2.4.6", 60_000_000, 4_000_000)
FACTS = Facts(
    "3.12.1",
    "aarch64",
    (SMALL, Package("onnxruntime", "1.32.0", 50_000_000, 1_000_000)),
    (Import("from hybrid_deploy import load_session", 120.4, 110.6, ()),),
    (
        Reading("fp32", 24, "ok", 8, 8),
        Reading("fp8", 24, "not run: no kernel", 8),
    ),
)


@pytest.mark.parametrize(
    "statement",
    ["import hybrid_deploy.runtime", "from hybrid_deploy import load_session, open_bundle"],
)
def test_an_import_loads_no_package_that_a_device_may_not_need(statement: str) -> None:
    code = f"{statement}\nimport sys; print([n for n in {UNWANTED} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def install(site: Path, name: str, sizes: dict[str, int]) -> None:
    """Writes a package's files of the given sizes, and its RECORD as pip does."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    for file, size in sizes.items():
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*sizes, "../bin/tool"]))


def test_package_sizes_leave_out_the_installers(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "small", {"small/a.py": 1000, "small/__pycache__/a.pyc": 30})
    install(site, "large", {"large/b.so": 2000})
    install(site, "pip", {"pip/c.py": 5000})
    (site / "setuptools").mkdir()
    (site / "setuptools" / "d.py").write_bytes(bytes(5000))
    (site / "left.py").write_bytes(bytes(7))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(bytes(5000))
    rows = {row.pop("name"): row for row in packages(site)}
    assert list(rows) == ["large", "small", "other"]
    assert rows["large"] == {"version": "1.0", "file_bytes": 2000, "bytecode_bytes": 0}
    assert rows["small"] == {"version": "1.0", "file_bytes": 1000, "bytecode_bytes": 30}
    records = sum(path.stat().st_size for path in site.glob("[sl]*.dist-info/*"))
    assert rows["other"]["file_bytes"] == 7 + records, "files in no RECORD count as other"


def test_the_page_has_every_number() -> None:
    base = msgspec.structs.replace(FACTS, packages=(SMALL,))
    text = page("# Title", {"here": FACTS}, {"here": base})
    assert "| here | 1.32.0 | 2.4.6 | 60.0 | 110.0 | 5.0 |" in text
    assert "| numpy | 2.4.6 | 60.0 | 4.0 |" in text
    assert "| here | `from hybrid_deploy import load_session` | 111 | 120 |  |" in text
    assert "| here | 1.32.0 | 24 | fp32 | 8 of 8 | ok |" in text
    assert "| here | 1.32.0 | 24 | fp8 | - | not run: no kernel |" in text
    assert text.endswith("Everything is as it should be.\n")


def test_each_fault_has_its_line() -> None:
    wrong = msgspec.structs.replace(
        FACTS,
        packages=(Package("torch", "2.9", 170_000_000, 0),),
        imports=(Import("import hybrid_deploy.runtime", 1, 1, ("torch", "PIL")),),
        readings=(Reading("int8", 21, "differs from the original model", 8, 7),),
    )
    assert failures({"here": FACTS}) == []
    assert failures({"here": wrong}) == [
        "here: 170 MB, more than 160",
        "here: `import hybrid_deploy.runtime` loads torch, PIL",
        "here: int8 of opset 21 differs from the original model",
    ]
    assert "- here: 170 MB, more than 160\n" in page("# Title", {"here": wrong}, {})


def test_the_error_of_a_failed_command_has_its_output() -> None:
    with pytest.raises(RuntimeError, match=r"failed: .*no such thing"):
        run(sys.executable, "-c", "raise SystemExit('no such thing')")
