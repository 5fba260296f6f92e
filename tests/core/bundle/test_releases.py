"""An update leaves the old bundle or the new one current, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from hybrid_deploy.bundle import releases
from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.release_record import Releases
from hybrid_deploy.bundle.releases import install, roll_back
from hybrid_deploy.errors import BundleError, HybridDeployError, InputError, UsageError
from tests.core.bundle.installed import contents, current, files_of, healthy, sick


class Killed(BaseException):
    """Ends a command as a kill does."""


def kill(*arguments: object, **options: object) -> NoReturn:
    raise Killed


def kill_at_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends a command when the new link is about to take its place."""
    replace = Path.replace

    def kill_or_replace(path: Path, target: Path) -> Path:
        return kill() if target.name == releases.CURRENT_LINK else replace(path, target)

    monkeypatch.setattr(Path, "replace", kill_or_replace)


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


@pytest.mark.parametrize(
    ("place", "function"),
    [
        (Releases, "begin"),
        (Path, "write_text"),
        (releases, "_copy"),
        (Releases, "finish"),
        (releases, "sync_names"),
        (releases, "_switch"),
        (releases, "_save_if_possible"),
    ],
)
def test_a_kill_leaves_the_old_or_the_new_bundle(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch, place: object, function: str
) -> None:
    install(bundles[0], slots, healthy)
    with monkeypatch.context() as patch:
        patch.setattr(place, function, kill)
        with pytest.raises(Killed):
            install(bundles[1], slots, healthy)
    left = 1 if function in {"sync_names", "_save_if_possible"} else 0
    assert current(slots) == left
    install(bundles[2], slots, healthy)
    assert current(slots) == 2
    assert len(contents(slots)) == 3
    roll_back(slots)
    assert current(slots) == left


def test_a_kill_between_the_new_link_and_its_place_leaves_the_old_one(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bundles[0], slots, healthy)
    with monkeypatch.context() as patch:
        kill_at_the_link(patch)
        with pytest.raises(Killed):
            install(bundles[1], slots, healthy)
    assert current(slots) == 0
    install(bundles[2], slots, healthy)
    assert contents(slots) == {"current", "0001", "0002"}


@pytest.mark.parametrize("call", ["symlink_to", "replace"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_full_disk_at_the_switch_leaves_the_old_bundle_and_nothing_else(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch, call: str, is_first: bool
) -> None:
    if not is_first:
        install(bundles[0], slots, healthy)
    real = getattr(Path, call)

    def full(path: Path, target: Path | str) -> object:
        if "current" in f"{path.name} {target}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, target)

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(HybridDeployError, match="current was not written: the disk is full"):
        install(bundles[1], slots, healthy)
    assert contents(slots) == (set() if is_first else {"current", "0001"})
    assert is_first or current(slots) == 0


def test_rolling_back_removes_what_a_killed_rollback_left(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    with monkeypatch.context() as patch:
        kill_at_the_link(patch)
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
    assert {path.name for path in slots.iterdir()} == {"current", "mine"}


@pytest.mark.parametrize("kind", ["full path", "slash", "through another link"])
def test_a_link_that_was_made_by_hand_is_followed(
    slots: Path, bundles: list[Path], kind: str
) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    (slots / "stable").symlink_to("0001")
    targets = {"full path": str(slots.absolute() / "0001"), "slash": "0001/"}
    (slots / "current").unlink()
    (slots / "current").symlink_to(targets.get(kind, "stable"))
    assert current(slots) == 0
    install(bundles[2], slots, healthy)
    assert current(slots) == 2
    assert roll_back(slots).name == "0001"


def test_a_link_that_leads_elsewhere_is_not_to_be_removed(
    slots: Path, bundles: list[Path], tmp_path: Path
) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    for target in ("0007", str(tmp_path), str(bundles[2])):
        (slots / "current").unlink()
        (slots / "current").symlink_to(target)
        said = (
            f"{slots}/current leads to {target}, which is no installed bundle of {slots}; let "
            f"it lead to one that is: ln -sfn 0002 {slots}/current"
        )
        with pytest.raises(InputError) as caught:
            install(bundles[2], slots, healthy)
        assert str(caught.value) == said
        with pytest.raises(InputError) as caught:
            roll_back(slots)
        assert str(caught.value) == said
    assert contents(slots) == {"current", "0001", "0002"}


def test_without_a_link_every_installed_bundle_stays(slots: Path, bundles: list[Path]) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    (slots / "current").unlink()
    with pytest.raises(InputError) as caught:
        roll_back(slots)
    assert str(caught.value) == (
        f"{slots}/current is missing, so none is current; let it lead to one that is: "
        f"ln -sfn 0002 {slots}/current"
    )
    with pytest.raises(BundleError, match="other tokens"):
        install(bundles[2], slots, sick)
    assert contents(slots) == {"0001", "0002"}
    install(bundles[2], slots, healthy)
    assert contents(slots) == {"current", "0001", "0002", "0003"}
    roll_back(slots)
    assert current(slots) == 1


def test_a_program_that_runs_keeps_its_bundle(slots: Path, bundles: list[Path]) -> None:
    install(bundles[0], slots, healthy)
    running = open_bundle(slots / "current")
    install(bundles[1], slots, healthy)
    assert open_bundle(running.folder).manifest.parameters == 0
    assert os.readlink(slots / "current") == "0002"


@pytest.mark.parametrize("name", ["0002", "current", "mounted"])
def test_a_source_in_the_slots_is_refused(slots: Path, bundles: list[Path], name: str) -> None:
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    source = slots / name
    if name == "mounted":
        source = slots.parent / "link"
        source.symlink_to(slots / "0001")
    before = files_of(slots)
    with pytest.raises(InputError, match=r"lies in .*slots, where `install` removes bundles; copy"):
        install(source, slots, healthy)
    assert files_of(slots) == before


@pytest.mark.parametrize("inside", ["", "fp32", "slots"])
def test_a_bundle_cannot_be_the_slots(bundles: list[Path], inside: str) -> None:
    before = files_of(bundles[0])
    for source in bundles[:2]:
        with pytest.raises(UsageError, match="would lie in the bundle"):
            install(source, bundles[0] / inside, healthy)
    with pytest.raises(UsageError, match="would lie in the bundle"):
        roll_back(bundles[0] / inside)
    assert files_of(bundles[0]) == before


def test_a_file_cannot_be_the_slots(slots: Path, bundles: list[Path]) -> None:
    slots.write_text("mine")
    with pytest.raises(InputError, match="slots is a file, a folder of installed bundles was"):
        install(bundles[0], slots, healthy)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(a_link, "is a link"), (a_pipe, "is no file"), (a_large_file, "at most 65536 are read")],
)
def test_signatures_that_are_no_small_file_are_not_copied(
    slots: Path, bundles: list[Path], make: Callable[[Path], None], reason: str
) -> None:
    make(bundles[0] / "signature.json")
    with pytest.raises(BundleError, match=rf"signature\.json .*{reason}"):
        install(bundles[0], slots, healthy)
    assert contents(slots) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no such modes")
def test_another_user_may_read_what_is_installed(slots: Path, bundles: list[Path]) -> None:
    for path in bundles[0].rglob("*"):
        path.chmod(0o700)
    before = os.umask(0o022)
    try:
        release = install(bundles[0], slots, healthy)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in release.rglob("*") if path.is_file()}
    assert modes == {0o644}
    assert stat.S_IMODE(release.stat().st_mode) == 0o755


def test_a_release_is_closed_to_others_until_it_is_verified(
    slots: Path, bundles: list[Path]
) -> None:
    modes = []
    install(bundles[0], slots, lambda path: modes.append(stat.S_IMODE(path.stat().st_mode)))
    assert modes == [0o700]


@pytest.mark.skipif(sys.platform == "win32", reason="its folders have no such modes")
def test_only_the_slots_must_be_writable(bundles: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as name:  # which another user may enter
        parent, slots = Path(name), Path(name, "slots")
        slots.mkdir()
        copies = [Path(shutil.copytree(bundle, parent / bundle.name)) for bundle in bundles]
        slots.chmod(0o777)
        parent.chmod(0o555)
        with ordinary_user():
            for bundle in copies:
                install(bundle, slots, healthy)
            roll_back(slots)
            with pytest.raises(HybridDeployError, match="no permission to write there"):
                install(copies[0], parent / "other", healthy)
        parent.chmod(0o755)
        assert contents(slots) == {"current", "0002", "0003"}


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Runs the block as a user whom permissions bind, as they do not bind root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
