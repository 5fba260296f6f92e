"""`--force` replaces bundles, and nothing that a user has put beside or into one."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle, staged_bundle
from hybrid_deploy.bundle.manifest import encode_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE
from hybrid_deploy.bundle.pending import mark
from hybrid_deploy.errors import InputError, OutputExistsError


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
    (own_path / ".manifest.json.writing-0123abcd").touch()
    (own_path / ".int8.staging-0123abcd").mkdir()
    (own_path / ".int8.staging-0123abcd" / "step.onnx").touch()
    (own_path / "int8").mkdir()
    mark(own_path / "int8")
    mark(own_path / "fp32")
    replace(own_path)
    assert os.listdir(own_path) == [MANIFEST_FILE]


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
