"""Nothing is removed from the slots that `install` did not make itself."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

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


def make_old_slots(slots: Path, bundles: list[Path]) -> None:
    """Makes slots as versions without a record left them: 0007 is current, 0006 was before it."""
    for name, bundle in (("0005", bundles[0]), ("0006", bundles[1]), ("0007", bundles[2])):
        shutil.copytree(bundle, slots / name)
    (slots / "current").symlink_to("0007")


def test_slots_without_a_record_are_taken_over(
    slots: Path, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    make_old_slots(slots, bundles)
    assert install(bundles[0], slots, healthy).name == "0008"
    assert contents(slots) == {"current", "0005", "0006", "0007", "0008"}
    assert f"{slots / '0006'} stays" in caplog.text
    assert roll_back(slots).name == "0007"
    for bundle in bundles[:2]:
        install(bundle, slots, healthy)
    assert contents(slots) == {"current", "0005", "0006", "0008", "0009"}


def test_slots_without_a_record_are_rolled_back(slots: Path, bundles: list[Path]) -> None:
    make_old_slots(slots, bundles)
    assert roll_back(slots).name == "0006"
    with pytest.raises(InputError, match="has no bundle before 0006"):
        roll_back(slots)
    install(bundles[0], slots, healthy)
    assert contents(slots) == {"current", "0005", "0006", "0007"}, "0007 was an own one"


@pytest.mark.parametrize("name", ["0007", "20261001"])
def test_a_bundle_that_holds_more_than_a_bundle_stays(
    slots: Path, bundles: list[Path], name: str
) -> None:
    shutil.copytree(bundles[0], slots / name)
    if name == "0007":
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
