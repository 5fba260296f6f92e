"""Scratch folders of processes that live stay, those of killed processes go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hybrid_deploy.scratch import scratch_folder

_WAITING = """
import sys, time
from hybrid_deploy.scratch import scratch_folder
with scratch_folder("test") as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_removed_at_the_end_and_after_an_error(temporary: Path) -> None:
    with pytest.raises(ValueError, match="no"), scratch_folder("test") as folder:
        (folder / "a").touch()
        assert folder.parent.parent == temporary
        assert os.listdir(folder) == ["a"]
        raise ValueError("no")
    assert os.listdir(temporary) == []


def test_the_folder_of_a_living_process_stays_and_that_of_a_killed_one_goes(
    temporary: Path,
) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", _WAITING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with scratch_folder("test"):
            assert theirs.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert theirs.is_dir(), "a killed process removes nothing"
    with scratch_folder("other"):
        assert theirs.is_dir(), "another purpose"
    with scratch_folder("test"):
        assert not theirs.exists()


def test_a_link_of_such_a_name_is_left_alone(temporary: Path) -> None:
    (temporary / "mine").mkdir()
    (temporary / "mine" / "a").touch()
    (temporary / "hybrid-deploy-test-link").symlink_to(temporary / "mine")
    with scratch_folder("test"):
        pass
    assert (temporary / "mine" / "a").exists()
    assert (temporary / "hybrid-deploy-test-link").is_symlink()


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("of-my-models", True),
        ("results", True),
        ("abcd1234", False),
        ("ABCD1234", True),
        ("abcd12345", True),
    ],
)
def test_a_folder_of_the_user_is_left_alone(temporary: Path, name: str, marked: bool) -> None:
    mine = temporary / f"hybrid-deploy-test-{name}"
    mine.mkdir()
    (mine / "final.pt").touch()
    if marked:
        (mine / ".hybrid-deploy-scratch").touch()
    with scratch_folder("test"):
        pass
    assert (mine / "final.pt").exists()
