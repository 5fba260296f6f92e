"""What is at an output, or appears there during the work, is never lost."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid_deploy.bundle import placement
from hybrid_deploy.bundle.atomic_write import staged_folder, write_file
from hybrid_deploy.errors import InputError, OutputExistsError


@pytest.fixture(params=["renameat2", "no renameat2"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test with the calls of this system, and without the one that Linux alone has."""
    if request.param == "no renameat2":
        monkeypatch.setattr(placement, "_renameat2", lambda *arguments: errno.ENOSYS)


def test_a_folder_that_appears_during_the_work_stays(tmp_path: Path) -> None:
    target = tmp_path / "late"
    with pytest.raises(OutputExistsError, match="late already exists; give --force"):
        with staged_folder(target) as folder:
            (folder / "new").touch()
            target.mkdir()
            (target / "thesis.txt").write_text("my only copy")
    assert (target / "thesis.txt").read_text() == "my only copy"
    assert os.listdir(tmp_path) == ["late"]


def test_a_file_that_appears_during_the_work_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flush = tmp_path / "late.json", os.fsync

    def flush_late(descriptor: int) -> None:
        flush(descriptor)
        target.write_text("my only copy")

    monkeypatch.setattr(os, "fsync", flush_late)
    with pytest.raises(OutputExistsError, match=r"late\.json already exists; give --force"):
        write_file(target, b"new", force=False)
    assert target.read_text() == "my only copy"
    assert os.listdir(tmp_path) == ["late.json"]


def test_without_force_a_free_name_is_taken(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"new", force=False)
    with staged_folder(tmp_path / "folder") as folder:
        (folder / "new").touch()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "folder") == ["new"]


def no_notes(folder: Path, name: Path) -> None:
    if (folder / "notes").exists():
        raise InputError(f"{name} holds notes")


@pytest.mark.parametrize("at_the_start", [True, False])
def test_a_folder_that_the_check_refuses_stays_with_force(
    tmp_path: Path, at_the_start: bool
) -> None:
    target = tmp_path / "late"
    if at_the_start:
        target.mkdir()
    with pytest.raises(InputError, match="late holds notes"):
        with staged_folder(target, force=True, check=no_notes):
            target.mkdir(exist_ok=True)
            (target / "notes").touch()
    assert os.listdir(target) == ["notes"]
    assert os.listdir(tmp_path) == ["late"]


def test_what_is_added_at_the_last_moment_gets_its_name_back(tmp_path: Path) -> None:
    target, calls = tmp_path / "late", iter(range(3))
    target.mkdir()

    def added_after_the_second_check(folder: Path, name: Path) -> None:
        no_notes(folder, name)
        if next(calls) == 1:
            (folder / "notes").touch()

    with (
        pytest.raises(InputError, match="late holds notes"),
        staged_folder(target, force=True, check=added_after_the_second_check),
    ):
        pass
    assert os.listdir(target) == ["notes"]
    assert os.listdir(tmp_path) == ["late"]


def socket_file(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def full_link(path: Path) -> None:
    path.with_name("mine").write_text("mine")
    path.symlink_to("mine")


@pytest.mark.skipif(sys.platform != "linux", reason="the kinds of files of Linux")
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("a pipe", os.mkfifo),
        ("a socket", socket_file),
        ("a device", device),
        ("a link", lambda path: path.symlink_to("nowhere")),
        ("a link", full_link),
    ],
)
def test_only_regular_files_are_replaced(
    tmp_path: Path, kind: str, make: Callable[[Path], None], force: bool
) -> None:
    target = tmp_path / "out"
    make(target)
    before = os.lstat(target)
    with pytest.raises(InputError, match=f"out is {kind}, a regular file was expected; name"):
        write_file(target, b"new", force=force)
    assert os.path.samestat(os.lstat(target), before)
    assert all(path.read_text() == "mine" for path in tmp_path.glob("mine"))
    if force:
        with pytest.raises(InputError, match=f"out is {kind}, a folder was expected; name"):
            with staged_folder(target, force=True):
                raise AssertionError("the block must not run")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a mount point of Linux")
def test_a_mount_point_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match=r"^/proc is a mount point, which is not replaced; name a"):
        placement.check_folder_output(Path("/proc"), force=True)


def test_a_folder_that_cannot_be_renamed_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def busy(*arguments: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(placement, "_renameat2", lambda *arguments: errno.ENOSYS)
    with pytest.raises(OSError, match="busy"), staged_folder(tmp_path / "out", force=True):
        monkeypatch.setattr(Path, "rename", busy)
    assert os.listdir(tmp_path) == ["out"]
