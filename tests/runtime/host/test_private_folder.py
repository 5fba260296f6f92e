"""Private folders: nothing stays of their files but what this process maps."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.host import private_folder as module
from hybrid_deploy.runtime.host.private_folder import private_folder
from hybrid_deploy.temporary_names import scratch_name

PAGE = mmap.PAGESIZE


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_IN_RAM", tmp_path)
    return tmp_path


@pytest.mark.parametrize("in_ram", [True, False])
def test_only_what_is_mapped_stays(
    in_ram: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_ram:
        monkeypatch.setattr(module, "_IN_RAM", tmp_path)
    with private_folder(8 * PAGE) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        path = folder / "weights.bin"
        path.write_bytes(b"w" * 8 * PAGE)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 2 * PAGE, access=mmap.ACCESS_READ, offset=4 * PAGE)
            kept = os.dup(file.fileno())
    assert not folder.exists()
    assert mapped[:] == b"w" * 2 * PAGE
    assert os.pread(kept, PAGE, 0) == bytes(PAGE), "it is not mapped, so it is freed"
    assert os.fstat(kept).st_blocks * 512 == 2 * PAGE
    os.close(kept)


def test_folders_of_killed_processes_are_removed_and_no_others(around: Path) -> None:
    killed, alive = scratch_name("weights"), scratch_name("weights")
    own = "hybrid-deploy-weights-of-my-models"  # a folder of the user, whose name begins like ours
    for name in (killed, alive, own):
        (around / name).mkdir()
        (around / name / "weights.bin").write_bytes(b"w")
        os.utime(around / name, (0, 0))
    lock = os.open(around / alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with private_folder(1):
        pass
    os.close(lock)
    assert {path.name for path in around.iterdir()} == {alive, own}


def test_an_error_leaves_nothing(around: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with private_folder(1) as folder:
            (folder / "weights.bin").write_bytes(b"w")
            raise ZeroDivisionError
    assert not list(around.iterdir())


def test_a_full_file_system_is_not_taken(around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(around / "gone"))
    with pytest.raises(BackendError, match=r"^loading needs 9223\d+ MB .*\$TMPDIR$"):
        with private_folder(2**63):
            pass
