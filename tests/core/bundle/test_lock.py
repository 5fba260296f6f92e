import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from hybrid_deploy.bundle.lock import exclusive
from hybrid_deploy.errors import HybridDeployError, InputError
from hybrid_deploy.process_locks import lock_open
from hybrid_deploy.temporary_folders import open_folder
from hybrid_deploy.temporary_names import lock_name


def test_who_waits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target, entered = tmp_path / "a.bundle", threading.Event()

    def write() -> None:
        with exclusive(target):
            entered.set()

    with caplog.at_level(logging.WARNING, "hybrid_deploy.bundle.lock"):
        logging.getLogger("hybrid_deploy").propagate = True
        with exclusive(target):
            writer = threading.Thread(target=write)
            writer.start()
            while not caplog.records:
                assert not entered.wait(0.01)
        writer.join(10)
    lines = {record.getMessage() for record in caplog.records}
    assert lines == {f"another process is writing {target}; waiting until it has ended"}
    assert entered.is_set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="its folders have no such modes")
def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    code = (
        "import filelock, os, sys; from pathlib import Path\n"
        "from hybrid_deploy.bundle.lock import exclusive\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "with exclusive(Path(sys.argv[1]), inside=True): pass\n"
        "try:\n"
        "    with exclusive(Path(sys.argv[1])): pass\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with tempfile.TemporaryDirectory() as parent:
        slots = Path(parent, "slots")
        slots.mkdir()
        slots.chmod(0o777)
        Path(parent).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, str(slots)], capture_output=True, text=True, check=False
        )
        Path(parent).chmod(0o755)
        assert done.stdout == (
            f"HybridDeployError {parent} is not writable (Permission denied), which it must be for "
            f"the lock {lock_name('slots')}; change its permissions or the user\n"
        ), done.stderr
        assert list(slots.iterdir()) == []


def test_nobody_waits_for_a_free_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with exclusive(tmp_path / "a.bundle"):
        pass
    assert not caplog.records


@pytest.mark.parametrize("kind", ["a file", "a link"])
def test_what_lies_where_the_lock_would_be_stays(tmp_path: Path, kind: str) -> None:
    path, mine = tmp_path / lock_name("a.bundle"), tmp_path / "mine"
    mine.write_text("mine")
    path.symlink_to(mine) if kind == "a link" else path.write_text("mine")
    with pytest.raises(InputError, match=rf"{path.name} is in the way: a lock.*; move it away"):
        with exclusive(tmp_path / "a.bundle"):
            raise AssertionError("the block must not run")
    assert path.read_text() == "mine"


def test_the_lock_that_a_killed_process_left_is_taken_and_removed(tmp_path: Path) -> None:
    (tmp_path / lock_name("a.bundle")).touch()
    with exclusive(tmp_path / "a.bundle"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_lock_of_another_program_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.bundle.lock").touch()
    with exclusive(tmp_path / "a.bundle"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".a.bundle.lock"]


def test_a_bundle_that_two_paths_lead_to_has_one_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.bundle").mkdir()
    with exclusive(tmp_path / "a.bundle"):
        # Another mount of the folder has another place for the file of the lock.
        monkeypatch.setattr("hybrid_deploy.bundle.lock.lock_name", lambda name: f".{name}.second")
        with pytest.raises(Timeout), exclusive(tmp_path / "a.bundle", wait=False):
            raise AssertionError("the block must not run")
    with exclusive(tmp_path / "a.bundle", wait=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.bundle"]


def test_who_waited_for_a_replaced_folder_locks_the_new_one(tmp_path: Path) -> None:
    target, entered = tmp_path / "a.bundle", threading.Event()
    target.mkdir()
    first = open_folder(target)
    assert first is not None and lock_open(first, wait=True)

    def write() -> None:
        with exclusive(target):
            second = open_folder(target)
            assert second is not None and lock_open(second, wait=False) is False
            os.close(second)
            entered.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert not entered.wait(0.1)
    target.rename(tmp_path / "old.bundle")
    target.mkdir()
    os.close(first)
    writer.join(10)
    assert entered.is_set()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_nobody_waits_where_no_file_can_be_made() -> None:
    with pytest.raises(
        HybridDeployError, match=r"^no file can be made in /proc \(.*; name another"
    ):
        with exclusive(Path("/proc/a.bundle")):
            raise AssertionError("the block must not run")
