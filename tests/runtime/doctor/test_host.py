import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.runtime.doctor import host
from hybrid_deploy.runtime.doctor.check import Check, Verdict
from hybrid_deploy.runtime.doctor.host import OptionalPackage

MEMINFO = """MemTotal:       32000000 kB
MemFree:          500000 kB
MemAvailable:   20000000 kB
HugePages_Total:       0
"""
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in (("proc/meminfo", MEMINFO), ("proc/self/cgroup", "0::/box\n")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "sys/fs/cgroup/box").mkdir(parents=True)
    return tmp_path


def test_ram_and_its_limit(root: Path) -> None:
    check = host.check_ram(root, shared_with_gpu=True)
    assert check == Check("memory", Verdict.OK, "20.5 GB free of 32.8 GB, shared with the GPU")
    (root / "sys/fs/cgroup/box/memory.max").write_text("max\n")
    assert "limited" not in host.check_ram(root).finding
    (root / "sys/fs/cgroup/box/memory.max").write_text("500000000\n")
    limited = host.check_ram(root)
    assert limited.finding == "20.5 GB free of 32.8 GB, limited to 0.5 GB by a cgroup"
    assert limited.verdict is Verdict.WARN and limited.remedy is not None


def test_the_check_of_the_cache_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "new"))
    assert host.check_cache().finding.startswith(f"{tmp_path}/new/engines, ")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    check = host.check_cache()
    assert check.verdict is Verdict.FAILED
    assert check.finding == f"{tmp_path}/file/engines is not writable: Not a directory"
    assert check.remedy == "name a folder that you can write in $HYBRID_DEPLOY_CACHE"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**10, 10**10, 10**7))
    assert host.check_cache().verdict is Verdict.WARN


def test_packages_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jiwer", raising=False)
    jiwer = OptionalPackage("jiwer", "report", "error rates")
    assert host.check_optional_package(jiwer).verdict is Verdict.OK
    assert "jiwer" not in sys.modules
    absent = OptionalPackage("not-a-package", "audio", "reads FLAC")
    remedy = "if you need it: pip install 'hybrid-deploy[audio]'"
    assert host.check_optional_package(absent) == Check(
        "not-a-package", Verdict.MISSING, "reads FLAC", remedy
    )


def test_python_3_10_ends_at_opset_23(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    remedy = host.check_python().remedy
    assert remedy is not None and remedy.endswith("export with --opset 21")
