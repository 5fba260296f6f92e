"""Nothing is removed from the slots that `install` did not make itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from hybrid_deploy.bundle import releases, replacement
from hybrid_deploy.bundle.release_record import RECORD_FILE
from hybrid_deploy.bundle.releases import install, roll_back
from hybrid_deploy.errors import BundleError, InputError
from tests.core.bundle.installed import contents, current, files_of, healthy, sick


def make_archive(slots: Path, bundle: Path) -> dict[str, bytes]:
    """Fills a folder with bundles and papers of the user, and returns the content of its files."""
    for name in ("0001", "20261127"):
        shutil.copytree(bundle, slots / name)
    (slots / "2024").mkdir()
    (slots / "2024" / "manifest.json").write_text("{}")
    (slots / "2024" / "thesis.txt").write_text("thesis")
    (slots / ".0002.staging-00000000").mkdir()
    (slots / ".0002.staging-00000000" / "thesis.txt").write_text("thesis")
    return files_of(slots)


def test_folders_of_others_are_never_removed(slots: Path, bundles: list[Path]) -> None:
    before = make_archive(slots, bundles[0])
    for bundle in (*bundles, bundles[0]):
        install(bundle, slots, healthy)
    roll_back(slots)
    install(bundles[1], slots, healthy)
    with pytest.raises(BundleError):
        install(bundles[2], slots, sick)
    assert before.items() <= files_of(slots).items()
    made = contents(slots) - {"0001", "20261127", "2024", ".0002.staging-00000000"}
    assert made == {"current", "0004", "0005"}


def test_slots_that_somebody_made_by_hand_are_never_removed(
    slots: Path, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name, bundle in (("0005", bundles[0]), ("0006", bundles[1]), ("0007", bundles[2])):
        shutil.copytree(bundle, slots / name)
    (slots / "current").symlink_to("0007")
    before = files_of(slots / "0007")
    with pytest.raises(InputError, match="has no bundle before 0007"):
        roll_back(slots)
    assert install(bundles[0], slots, healthy).name == "0008"
    assert roll_back(slots).name == "0007", "the bundle before stays known, to go back to"
    for bundle in bundles:
        install(bundle, slots, healthy)
    assert contents(slots) == {"current", "0005", "0006", "0007", "0009", "0010"}
    assert files_of(slots / "0007") == before
    assert f"{slots / '0007'} stays, as no record says that install made it" in caplog.text


def a_file(release: Path) -> str:
    (release / "NOTES.txt").write_text("mine")
    return "NOTES.txt"


def a_folder(release: Path) -> str:
    (release / "fp32" / "extra").mkdir()
    return "fp32/extra/"


def a_link(release: Path) -> str:
    (release / "photos").symlink_to(release.parent)
    return "photos/"


def a_folder_like_a_temporary(release: Path) -> str:
    (release / ".fp32.staging-deadbeef").mkdir()
    return ".fp32.staging-deadbeef/"


@pytest.mark.parametrize("make", [a_file, a_folder, a_link, a_folder_like_a_temporary])
def test_a_release_that_holds_something_of_the_user_stays(
    slots: Path,
    bundles: list[Path],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], str],
) -> None:
    install(bundles[0], slots, healthy)
    said = make(slots / "0001")
    before = sorted((slots / "0001").rglob("*"))
    for bundle in bundles:
        install(bundle, slots, healthy)
    assert sorted((slots / "0001").rglob("*")) == before
    assert contents(slots) == {"current", "0001", "0003", "0004"}
    assert caplog.text.count(f"{slots / '0001'} stays, as it also holds {said}; remove it if") == 1


def test_a_mount_in_a_release_is_not_entered(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(bundles[0], slots, healthy)
    before = files_of(slots / "0001")
    monkeypatch.setattr(
        replacement, "is_mount_point", lambda path: path == slots / "0001" / "golden"
    )
    for bundle in bundles:
        install(bundle, slots, healthy)
    assert files_of(slots / "0001") == before


def test_a_release_whose_manifest_is_damaged_stays(slots: Path, bundles: list[Path]) -> None:
    install(bundles[0], slots, healthy)
    (slots / "0001" / "manifest.json").write_text("{}")
    for bundle in bundles:
        install(bundle, slots, healthy)
    assert (slots / "0001" / "manifest.json").read_text() == "{}"
    assert contents(slots) == {"current", "0001", "0003", "0004"}


def test_an_interrupt_after_the_switch_keeps_what_is_current(
    slots: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> NoReturn:
        raise KeyboardInterrupt

    install(bundles[0], slots, healthy)
    with monkeypatch.context() as patch:
        patch.setattr(releases, "sync_names", interrupt)
        with pytest.raises(KeyboardInterrupt):
            install(bundles[1], slots, healthy)
    assert current(slots) == 1


@pytest.mark.parametrize("name", ["0007", "20261001"])
def test_a_bundle_that_holds_more_than_a_bundle_stays(
    slots: Path, bundles: list[Path], name: str
) -> None:
    shutil.copytree(bundles[0], slots / name)
    (slots / name / "thesis.txt").write_text("thesis")
    (slots / "current").symlink_to(name)
    before = files_of(slots / name)
    for bundle in (*bundles, bundles[0]):
        install(bundle, slots, healthy)
    assert files_of(slots / name) == before


def test_a_folder_in_the_place_of_a_release_stays(slots: Path, bundles: list[Path]) -> None:
    for bundle in bundles:
        install(bundle, slots, healthy)
    shutil.rmtree(slots / "0002")
    (slots / "0002").mkdir()
    (slots / "0002" / "thesis.txt").write_text("thesis")
    install(bundles[0], slots, healthy)
    assert files_of(slots / "0002") == {"thesis.txt": b"thesis"}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{}",
        b'{"made_by": "me", "releases": {}}',
        b'{"made_by": "hybrid-deploy install", "releases": {"../outside": null}}',
        b'{"made_by": "hybrid-deploy install", "releases": {"0001": "../../outside"}}',
        b" " * 70_000,
    ],
)
def test_a_record_that_is_none_is_refused(slots: Path, bundles: list[Path], content: bytes) -> None:
    install(bundles[0], slots, healthy)
    (slots / RECORD_FILE).write_bytes(content)
    for function in (partial(install, bundles[1], slots, healthy), partial(roll_back, slots)):
        with pytest.raises(InputError, match=r"installed\.json is no record of .*remove"):
            function()
    assert contents(slots) == {"current", "0001"}
    (slots / RECORD_FILE).unlink()
    install(bundles[1], slots, healthy)
    assert current(slots) == 1


def test_links_in_place_of_releases_are_left_alone(slots: Path, bundles: list[Path]) -> None:
    slots.mkdir()
    (slots / "0001").symlink_to(bundles[2])
    before = files_of(bundles[2])
    assert install(bundles[0], slots, healthy).name == "0002"
    (slots / "current").unlink()
    (slots / "current").symlink_to("0001")
    assert install(bundles[1], slots, healthy).name == "0002", "it was newer than the current one"
    assert install(bundles[0], slots, healthy).name == "0003"
    assert (slots / "0001").is_symlink()
    assert files_of(bundles[2]) == before
