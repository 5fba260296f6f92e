"""Scratch folders of processes that live stay, those of killed processes go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hybrid_deploy import temporary_folders
from hybrid_deploy.scratch import scratch_folder
from hybrid_deploy.temporary_names import scratch_name

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
        assert folder.parent == temporary
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
    link = scratch_name("test")
    (temporary / "mine").mkdir()
    (temporary / "mine" / "a").touch()
    (temporary / link).symlink_to(temporary / "mine")
    with scratch_folder("test"):
        pass
    assert (temporary / "mine" / "a").exists()
    assert (temporary / link).is_symlink()


@pytest.mark.parametrize("content", [(), ("weights.bin",)])
def test_the_folder_of_a_process_that_was_killed_at_any_call_goes(
    temporary: Path, content: tuple[str, ...]
) -> None:
    dead = temporary / scratch_name("test")
    dead.mkdir(0o700)
    for name in content:
        (dead / name).touch()
    with scratch_folder("test"):
        assert not dead.exists()


def test_what_is_mounted_in_a_dead_folder_stays(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = temporary / scratch_name("test")
    (dead / "in").mkdir(parents=True)
    (dead / "in" / "mine").touch()
    (dead / "graph.onnx").touch()
    monkeypatch.setattr(temporary_folders, "is_mount_point", lambda path: path.name == "in")
    with scratch_folder("test"):
        pass
    assert (dead / "in" / "mine").exists() and (dead / "graph.onnx").exists()


@pytest.mark.parametrize(
    "name", ["of-my-models", "results", "abcd1234", "0123456789abcdef", "0123abcd89ef456"]
)
def test_a_folder_of_the_user_is_left_alone(temporary: Path, name: str) -> None:
    mine = temporary / f"hybrid-deploy-test-{name}"
    mine.mkdir()
    (mine / "final.pt").touch()
    with scratch_folder("test"):
        pass
    assert (mine / "final.pt").exists()
