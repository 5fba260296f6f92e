"""Files that are none, and what readers raise, in one line that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.input_files import check_file, read_errors


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "link.png").symlink_to("a.png")
    check_file(tmp_path / "a.png")
    check_file(tmp_path / "link.png")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, problem in (
        ("missing", "does not exist"),
        ("dangling", "is a link to a file that does not exist"),
        ("folder", "is no file: it is a folder"),
        ("pipe", "is no file: it is a pipe, a socket or a device"),
        ("device", "is no file: it is a pipe, a socket or a device"),
    ):
        with pytest.raises(InputError) as caught:
            check_file(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} {problem}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no\ncolours"), "a.png is damaged: no colours"),
        (KeyError(), "a.png is damaged: KeyError"),
        (OSError("truncated"), "a.png is damaged: truncated"),
        (
            PermissionError(13, "Permission denied", "a.png"),
            "a.png cannot be read: Permission denied; check the path and its permissions",
        ),
        (MemoryError(), "a.png needs more RAM than there is; give a smaller one"),
        (InputError("as it is"), "as it is"),
    ],
)
def test_whatever_a_reader_raises_names_the_file(error: Exception, message: str) -> None:
    with pytest.raises(InputError) as caught, read_errors("a.png", "is damaged"):
        raise error
    assert str(caught.value) == message


def test_other_errors_of_this_package_pass() -> None:
    with pytest.raises(CalibrationError), read_errors("a.png", "is damaged"):
        raise CalibrationError("scales")
