"""An update leaves the old bundle or the new one current, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from hybrid_deploy.bundle import releases
from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.releases import install, roll_back
from hybrid_deploy.errors import BundleError, HybridDeployError, InputError


def healthy(path: Path) -> None:
    """Accepts a bundle that opens."""
    open_bundle(path)


def sick(path: Path) -> NoReturn:
    raise BundleError("other tokens on this device")


class Killed(BaseException):
    """Ends a command as a kill does."""


def kill(*arguments: object, **options: object) -> NoReturn:
    raise Killed


@pytest.fixture
def slots(tmp_path: Path) -> Path:
    return tmp_path / "slots"


@pytest.fixture
def bundles(own_path: Path, tmp_path: Path) -> list[Path]:
    """Three bundles that differ in the number of parameters that they state: 0, 1 and 2."""
    made = []
    for number in range(3):
        folder = Path(shutil.copytree(own_path, tmp_path / f"{number}.bundle"))
        manifest = open_bundle(folder).manifest
        seal_bundle(folder, msgspec.structs.replace(manifest, parameters=number))
        made.append(folder)
    return made


def current(slots: Path) -> int:
    return open_bundle(slots / "current").manifest.parameters


def contents(slots: Path) -> set[str]:
    return {path.name for path in slots.iterdir()}


def test_the_newest_is_current_and_the_one_before_is_kept(slots: Path, bundles: list[Path]) -> None:
    for number, bundle in enumerate(bundles):
        install(bundle, slots, healthy)
        assert current(slots) == number
    assert contents(slots) == {"current", "0002", "0003"}
    assert not list(slots.parent.glob(".slots*"))


def test_rolling_back_and_forward(slots: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    assert roll_back(slots).name == "0001"
    assert current(slots) == 0
    with pytest.raises(InputError, match="has no bundle before 0001 to go back to"):
        roll_back(slots)
    install(bundles[2], slots, healthy)
    assert current(slots) == 2
    roll_back(slots)
    assert current(slots) == 0, "the bundle that was rolled back is never current again"


def test_a_bundle_that_fails_its_test_leaves_the_running_one(
    slots: Path, bundles: list[Path]
) -> None:
    install(bundles[0], slots, healthy)
    with pytest.raises(BundleError, match="other tokens on this device"):
        install(bundles[1], slots, sick)
    assert current(slots) == 0
    assert contents(slots) == {"current", "0001"}


def test_a_damaged_bundle_is_not_rolled_back_to(slots: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    (slots / "0001" / "fp32" / "step.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="is damaged"):
        roll_back(slots)
    assert current(slots) == 1


@pytest.mark.parametrize("function", ["_copy", "staged_folder", "_switch", "_remove_others"])
def test_a_kill_leaves_the_old_or_the_new_bundle(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    install(bundles[0], slots, healthy)
    with monkeypatch.context() as patch:
        patch.setattr(releases, function, kill)
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(Killed):
            install(bundles[1], slots, healthy)
    assert current(slots) == (1 if function == "_remove_others" else 0)
    install(bundles[2], slots, healthy)
    assert current(slots) == 2
    assert len(contents(slots)) == 3
    roll_back(slots)
    assert current(slots) == (1 if function == "_remove_others" else 0)


def test_a_kill_between_the_new_link_and_its_place_leaves_the_old_one(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bundles[0], slots, healthy)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            install(bundles[1], slots, healthy)
    assert current(slots) == 0
    install(bundles[2], slots, healthy)
    assert contents(slots) == {"current", "0001", "0002"}


@pytest.mark.parametrize("call", ["symlink_to", "replace"])
def test_a_full_disk_at_the_switch_leaves_the_old_bundle_and_nothing_else(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    install(bundles[0], slots, healthy)
    monkeypatch.setattr(Path, call, full)
    with pytest.raises(HybridDeployError, match="current was not written: the disk is full"):
        install(bundles[1], slots, healthy)
    assert current(slots) == 0
    assert contents(slots) == {"current", "0001"}


def test_rolling_back_removes_what_a_killed_rollback_left(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            roll_back(slots)
    assert len(contents(slots)) == 4, "the link that was not renamed yet"
    roll_back(slots)
    assert contents(slots) == {"current", "0001", "0002"}


def a_folder(slots: Path) -> None:
    (slots / "current").mkdir(parents=True)


def a_link_elsewhere(slots: Path) -> None:
    slots.mkdir()
    (slots / "current").symlink_to(slots.parent)


@pytest.mark.parametrize("make", [a_folder, a_link_elsewhere])
def test_slots_of_something_else_are_left_alone(
    slots: Path, bundles: list[Path], make: Callable[[Path], None]
) -> None:
    make(slots)
    (slots / "mine").write_text("mine")
    with pytest.raises(InputError, match=r"is no link of `install`|is no installed bundle"):
        install(bundles[0], slots, healthy)
    assert contents(slots) == {"current", "mine"}


def test_a_program_that_runs_keeps_its_bundle(slots: Path, bundles: list[Path]) -> None:
    install(bundles[0], slots, healthy)
    running = open_bundle(slots / "current")
    install(bundles[1], slots, healthy)
    assert open_bundle(running.folder).manifest.parameters == 0
    assert os.readlink(slots / "current") == "0002"
