"""`--force` replaces bundles, and nothing that a user has put beside or into one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy import temporary_folders
from hybrid_deploy.bundle import pending, replacement
from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle, staged_bundle, staged_variant
from hybrid_deploy.bundle.manifest import encode_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE
from hybrid_deploy.bundle.pending import mark
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import InputError, OutputExistsError
from hybrid_deploy.temporary_names import temporary_name


def replace(target: Path) -> None:
    """Replaces a bundle by an empty one of the same manifest."""
    manifest = open_bundle(target).manifest
    with staged_bundle(target, force=True) as folder:
        seal_bundle(folder, msgspec.structs.replace(manifest, parameters=1))


def test_a_folder_with_any_manifest_is_no_bundle(tmp_path: Path) -> None:
    target = tmp_path / "fake"
    target.mkdir()
    (target / MANIFEST_FILE).write_text("{}")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="fake exists and is not a bundle; it is not replaced"):
        with staged_bundle(target, force=True):
            raise AssertionError("the block must not run")
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notes.txt"], "notes.txt"),
        (["mydir/"], "mydir/"),
        (["fp32/notes.txt", "golden/.hidden"], "fp32/notes.txt, golden/.hidden"),
        (["fp32/mine/a"], "fp32/mine/"),
        (["golden/page.txt/"], "golden/page.txt/"),
        (["e", "d", "c", "b"], "b, c, d and more"),
        ([".hybrid-deploy-pending"], ".hybrid-deploy-pending"),
        ([".int8.staging-0123abcd/"], ".int8.staging-0123abcd/"),
        ([".notes.writing-deadbeef"], ".notes.writing-deadbeef"),
    ],
)
def test_a_bundle_that_holds_other_files_stays(own_path: Path, names: list[str], said: str) -> None:
    for name in names:
        path = own_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("mine")
    before = sorted(own_path.rglob("*"))
    with pytest.raises(InputError, match=f"it also holds {said}, which the bundle does not list"):
        replace(own_path)
    assert sorted(own_path.rglob("*")) == before


def test_a_link_in_a_bundle_stays(own_path: Path, tmp_path: Path) -> None:
    (own_path / "photos").symlink_to(tmp_path)
    with pytest.raises(InputError, match="it also holds photos/, which the bundle does not list"):
        replace(own_path)
    assert (own_path / "photos").is_symlink()


def test_what_the_toolkit_leaves_in_a_bundle_does_not_keep_it(own_path: Path) -> None:
    (own_path / "signature.json").write_text("[]")
    (own_path / ".pending.json").write_text('["other"]')
    (own_path / temporary_name(MANIFEST_FILE, "writing")).touch()
    staging = own_path / temporary_name("int8", "staging")
    staging.mkdir()
    (staging / "step.onnx").touch()
    (own_path / "int8").mkdir()
    (own_path / "int8" / "step.onnx").touch()
    mark(own_path / "int8", ["step.onnx"])
    mark(own_path / "fp32", ["step.onnx"])
    replace(own_path)
    assert os.listdir(own_path) == [MANIFEST_FILE]


def replace_variant(bundle: Path, work: Callable[[], object] = lambda: None) -> None:
    """Replaces the variant fp32 by one of the same graphs, after some work."""
    variant = open_bundle(bundle).variant("fp32")
    with staged_variant(open_bundle(bundle), "fp32", force=True) as staged:
        work()
        files = {}
        for role, spec in open_bundle(bundle).graphs("fp32").items():
            name = Path(spec.file).name
            (staged.folder / name).write_bytes(b"new")
            files[role.value] = msgspec.structs.replace(spec, file=f"{staged.home}/{name}")
        staged.variant = msgspec.structs.replace(variant, **files)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("name", "said"), [("notes.txt", "notes.txt"), ("mine/a", "mine/")])
def test_a_variant_whose_folder_holds_other_files_stays(
    own_path: Path, name: str, said: str, late: bool
) -> None:
    def work() -> None:
        (own_path / "fp32" / name).parent.mkdir(exist_ok=True)
        (own_path / "fp32" / name).write_text("mine")

    if not late:
        work()
    listed = sorted(path for path in own_path.rglob("*") if path.is_file())
    with pytest.raises(InputError, match=f"fp32 of .* not replaced: .* also holds fp32/{said}, wh"):
        replace_variant(own_path, work if late else lambda: pytest.fail("the block must not run"))
    left = {path for path in own_path.rglob("*") if path.is_file()}
    assert left == {*listed, own_path / "fp32" / name}
    open_bundle(own_path)


def test_what_is_added_to_a_variant_at_the_last_moment_stays(
    own_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mark_and_add(folder: Path, names: Collection[str], home: str | None = None) -> None:
        mark(folder, names, home)
        if folder.name == "fp32":
            (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(pending, "mark", mark_and_add)
    replace_variant(own_path)
    assert os.listdir(own_path / "fp32") == ["notes.txt"]
    assert f"{own_path / 'fp32'} stays, as it holds files that are of no variant" in caplog.text
    assert open_bundle(own_path).graph_path("fp32", GraphRole.STEP).read_bytes() == b"new"


def test_a_mount_in_a_bundle_keeps_it(own_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacement, "is_mount_point", lambda path: path.name == "golden")
    with pytest.raises(InputError, match="it also holds golden/, which the bundle does not list"):
        replace(own_path)
    assert os.listdir(own_path / "golden")


def test_a_mount_in_a_leftover_folder_keeps_the_bundle(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = own_path / temporary_name("int8", "staging")
    (staging / "in").mkdir(parents=True)
    (staging / "in" / "mine").touch()
    monkeypatch.setattr(temporary_folders, "is_mount_point", lambda path: path.name == "in")
    with pytest.raises(InputError, match=f"it also holds {staging.name}/in/, which the bundle"):
        replace(own_path)
    replace_variant(own_path)
    assert (staging / "in" / "mine").exists()


def test_a_bundle_of_another_version_stays(own_path: Path) -> None:
    manifest = msgspec.structs.replace(open_bundle(own_path).manifest, schema_version=1)
    (own_path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    with pytest.raises(
        InputError, match=r"schema version 1.*move the folder away, or name another"
    ):
        with staged_bundle(own_path, force=True):
            raise AssertionError("the block must not run")
    assert (own_path / "fp32").is_dir()


def test_the_working_folder_can_be_a_bundle(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(own_path).manifest
    monkeypatch.chdir(own_path)
    with pytest.raises(OutputExistsError), staged_bundle(Path()):
        raise AssertionError("the block must not run")
    with staged_bundle(Path(), force=True) as folder:
        seal_bundle(folder, manifest)
    assert os.listdir(own_path) == [MANIFEST_FILE]
