import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from hybrid_deploy.bundle import bundle as bundle_module
from hybrid_deploy.bundle import pending, placement
from hybrid_deploy.bundle.bundle import (
    Bundle,
    open_bundle,
    seal_bundle,
    staged_bundle,
    staged_variant,
)
from hybrid_deploy.bundle.manifest import SCHEMA_VERSION, decode_manifest, encode_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError, InputError, OutputExistsError, UsageError
from hybrid_deploy.temporary_names import temporary_name


def test_manifest_round_trip(tiny_bundle: Bundle) -> None:
    data = encode_manifest(tiny_bundle.manifest)
    assert decode_manifest(data, "here") == tiny_bundle.manifest
    assert json.loads(data)["manifest"]["name"] == "tiny"


def test_a_manifest_that_could_not_be_read_is_not_written(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    nameless = msgspec.structs.replace(tiny_bundle.manifest, name="")
    with pytest.raises(BundleError, match="to be written does not follow the schema"):
        seal_bundle(tmp_path, nameless)
    assert list(tmp_path.iterdir()) == []


def test_every_file_is_in_the_manifest(tiny_path: Path, tiny_bundle: Bundle) -> None:
    paths = {p.relative_to(tiny_path).as_posix() for p in tiny_path.rglob("*") if p.is_file()}
    assert paths == {MANIFEST_FILE, *tiny_bundle.manifest.files}


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.bundle does not exist$"):
        open_bundle(tmp_path / "no.bundle")


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a bundle: it has no manifest\.json$"):
        open_bundle(tmp_path)


def test_a_changed_byte_of_any_file_is_found(own_path: Path, tiny_bundle: Bundle) -> None:
    for name in tiny_bundle.manifest.files:
        path = own_path / name
        original = path.read_bytes()
        changed = bytearray(original)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=f"is damaged: {name} was changed"):
            open_bundle(own_path)
        path.write_bytes(original)
    open_bundle(own_path)


def test_missing_file(own_path: Path) -> None:
    (own_path / "fp32" / "step.onnx").unlink()
    with pytest.raises(BundleError, match=r"is incomplete: fp32/step\.onnx is missing"):
        open_bundle(own_path)


def test_changed_manifest(own_path: Path) -> None:
    path = own_path / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"max_length": 8', b'"max_length": 7'))
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_bundle(own_path)


def test_truncated_manifest(own_path: Path) -> None:
    path = own_path / MANIFEST_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match="is not a bundle manifest"):
        open_bundle(own_path)


def test_unknown_schema_version(own_path: Path, tiny_bundle: Bundle) -> None:
    newer = msgspec.structs.replace(tiny_bundle.manifest, schema_version=SCHEMA_VERSION + 1)
    (own_path / MANIFEST_FILE).write_bytes(encode_manifest(newer))
    with pytest.raises(BundleError, match="has schema version 3, this hybrid-deploy reads 2"):
        open_bundle(own_path)


def test_an_element_type_that_onnx_does_not_have(tiny_bundle: Bundle) -> None:
    fp32 = tiny_bundle.variant("fp32")
    image = msgspec.structs.replace(fp32.encoder.inputs[0], dtype="fp32")
    encoder = msgspec.structs.replace(fp32.encoder, inputs=(image,))
    variants = {"fp32": msgspec.structs.replace(fp32, encoder=encoder)}
    manifest = msgspec.structs.replace(tiny_bundle.manifest, variants=variants)
    with pytest.raises(BundleError, match=r"Invalid enum value 'fp32' - at .*dtype"):
        decode_manifest(encode_manifest(manifest), "here")


def test_unknown_variant_lists_the_variants(tiny_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"has no variant 'int9' \(it has fp32\)"):
        tiny_bundle.graph_path("int9", GraphRole.STEP)


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="is not a bundle; it is not replaced"):
        with staged_bundle(tmp_path / "photos", force=True):
            raise AssertionError("the block must not run")


def test_failed_bundle_is_not_written(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="no"), staged_bundle(tmp_path / "new") as folder:
        seal_bundle(folder, tiny_bundle.manifest)
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def add_variant(bundle: Bundle, content: bytes, *, force: bool = False) -> None:
    with staged_variant(bundle, "other", force=force) as staged:
        (staged.folder / "step.onnx").write_bytes(content)
        variant = bundle.manifest.variants["fp32"]
        file = f"{staged.home}/step.onnx"
        encoder, step = (
            msgspec.structs.replace(graph, file=file) for graph in (variant.encoder, variant.step)
        )
        staged.variant = msgspec.structs.replace(
            variant, encoder=encoder, step=step, prefill=None, beam_step=None
        )


def test_variant_is_added(own_path: Path) -> None:
    add_variant(open_bundle(own_path), b"1234")
    bundle = open_bundle(own_path)
    assert list(bundle.manifest.variants) == ["fp32", "other"]
    assert bundle.variant_size_bytes("other") == 4


def test_variant_is_replaced_only_with_force(own_path: Path) -> None:
    add_variant(open_bundle(own_path), b"1")
    with pytest.raises(OutputExistsError, match="variant other of"):
        add_variant(open_bundle(own_path), b"22")
    add_variant(open_bundle(own_path), b"22", force=True)
    bundle = open_bundle(own_path)
    assert bundle.graph_path("other", GraphRole.STEP).read_bytes() == b"22"
    files = {path.relative_to(own_path).as_posix() for path in own_path.rglob("*.onnx")}
    assert files == {name for name in bundle.manifest.files if name.endswith(".onnx")}


def test_failed_variant_leaves_the_bundle_as_it_was(own_path: Path) -> None:
    bundle = open_bundle(own_path)
    with pytest.raises(KeyboardInterrupt), staged_variant(bundle, "other") as staged:
        (staged.folder / "step.onnx").write_bytes(b"half")
        raise KeyboardInterrupt
    assert open_bundle(own_path).manifest == bundle.manifest


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_the_user_in_a_bundle_is_never_touched(own_path: Path, force: bool) -> None:
    (own_path / "other").mkdir()
    (own_path / "other" / "notes.txt").write_text("mine")
    add_variant(open_bundle(own_path), b"1", force=force)
    assert (own_path / "other" / "notes.txt").read_text() == "mine"
    assert open_bundle(own_path).graph("other", GraphRole.STEP).file == "other-2/step.onnx"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", ".", "..", "golden", "fp32/sub", "", "a" * 65])
def test_a_name_that_leads_elsewhere_names_no_variant(own_path: Path, name: str) -> None:
    before = sorted(own_path.parent.rglob("*"))
    with pytest.raises(UsageError, match="cannot name a variant: 1 to 64 letters, digits"):
        with staged_variant(open_bundle(own_path), name, force=True):
            raise AssertionError("the block must not run")
    assert sorted(own_path.parent.rglob("*")) == before


def full(*arguments: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_at_the_manifest_leaves_nothing(
    own_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    if force:
        add_variant(open_bundle(own_path), b"old")
    before = files_of(own_path)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "write_file", full)
        with pytest.raises(OSError, match="No space left"):
            add_variant(open_bundle(own_path), b"new", force=force)
    assert files_of(own_path) == before
    assert sum(path.is_dir() for path in own_path.iterdir()) == (3 if force else 2)
    open_bundle(own_path)


def test_a_name_that_differs_in_case_gets_a_folder_that_differs_more(own_path: Path) -> None:
    with staged_variant(open_bundle(own_path), "FP32") as staged:
        assert staged.home == "FP32-2"
        shutil.copytree(own_path / "fp32", staged.folder, dirs_exist_ok=True)
        graphs = open_bundle(own_path).graphs("fp32")
        files = {
            role.value: msgspec.structs.replace(spec, file=f"FP32-2/{Path(spec.file).name}")
            for role, spec in graphs.items()
        }
        variant = open_bundle(own_path).variant("fp32")
        staged.variant = msgspec.structs.replace(variant, **files)
    assert list(open_bundle(own_path).manifest.variants) == ["fp32", "FP32"]


class Killed(BaseException):
    """Ends the process in a test, so that no clean-up of the code under test runs."""


@pytest.mark.parametrize("moment", ["the rename", "the manifest", "the removal"])
def test_the_next_variant_removes_what_a_killed_process_left(
    own_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    add_variant(open_bundle(own_path), b"old")
    old = own_path / "other"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **options: None)
        patch.setattr(pending, "remove_files", killed)
        if moment == "the rename":
            patch.setattr(placement, "_take_name", killed)
        if moment == "the manifest":
            patch.setattr(bundle_module, "write_file", killed)
        with pytest.raises(Killed):
            add_variant(open_bundle(own_path), b"killed", force=True)
    assert old.is_dir()
    (own_path / temporary_name(MANIFEST_FILE, "writing")).touch()
    content = open_bundle(own_path).graph_path("other", GraphRole.STEP).read_bytes()
    assert content == (b"killed" if moment == "the removal" else b"old")
    assert files_of(own_path) - {MANIFEST_FILE, *open_bundle(own_path).manifest.files}
    add_variant(open_bundle(own_path), b"new", force=True)
    assert files_of(own_path) == {MANIFEST_FILE, *open_bundle(own_path).manifest.files}
    assert sum(path.is_dir() for path in own_path.iterdir()) == 3


def test_the_copy_of_a_folder_that_a_killed_process_left_stays(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pending, "remove_files", killed)
        patch.setattr(bundle_module, "write_file", killed)
        with pytest.raises(Killed):
            add_variant(open_bundle(own_path), b"killed")
    shutil.copytree(own_path / "other", own_path / "rescued")
    add_variant(open_bundle(own_path), b"new")
    assert open_bundle(own_path).graph_path("other", GraphRole.STEP).read_bytes() == b"new"
    assert (own_path / "rescued" / "step.onnx").read_bytes() == b"killed"


def test_a_mark_that_was_half_written_does_not_keep_a_variant(own_path: Path) -> None:
    add_variant(open_bundle(own_path), b"old")
    (own_path / "other" / pending.MARK_FILE).write_text('{"folder":"oth')
    add_variant(open_bundle(own_path), b"new", force=True)
    assert files_of(own_path) == {MANIFEST_FILE, *open_bundle(own_path).manifest.files}


@pytest.mark.parametrize("listed", [True, False])
def test_a_note_of_somebody_else_removes_nothing(own_path: Path, listed: bool) -> None:
    """Such a note planted a deletion: the user's own folder in a bundle of a stranger."""
    (own_path / ".pending.json").write_text('["notes", "fp32"]')
    (own_path / "notes").mkdir()
    (own_path / "notes" / "thesis.txt").write_text("my only copy")
    if listed:
        pending.mark(own_path / "fp32", ["step.onnx"])
    add_variant(open_bundle(own_path), b"1")
    assert (own_path / "notes" / "thesis.txt").read_text() == "my only copy"
    assert not pending.is_marked(own_path / "fp32")
    open_bundle(own_path)


def test_a_mark_that_is_a_link_is_not_followed(own_path: Path, tmp_path: Path) -> None:
    (own_path / "fp32" / pending.MARK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        pending.mark(own_path / "fp32", [])
    assert not (tmp_path / "elsewhere").exists()
    assert not pending.is_marked(own_path / "fp32")


def killed(*arguments: object, **options: object) -> NoReturn:
    raise Killed


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_replaced_through_a_link_to_it(own_path: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.bundle"
    link.symlink_to(own_path)
    manifest = open_bundle(own_path).manifest
    with staged_bundle(link, force=True) as folder:
        for name in manifest.files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"")
        seal_bundle(folder, manifest)
    assert link.is_symlink()
    assert open_bundle(link).manifest.files["fp32/step.onnx"].size_bytes == 0


def test_a_reader_waits_for_a_bundle_that_was_set_aside(own_path: Path) -> None:
    retired = own_path.with_name(temporary_name(own_path.name, "retired"))
    retired.mkdir()
    own_path.rename(retired / own_path.name)
    open_bundle(own_path)
    assert not retired.exists()


def test_readers_during_a_replacement_see_the_old_or_the_new_bundle(own_path: Path) -> None:
    """A bundle whose files all have the version's number as content is replaced 40 times."""
    manifest = open_bundle(own_path).manifest
    done = threading.Event()
    seen: set[int] = set()
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(open_bundle(own_path).manifest.parameters)
            except BaseException as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for version in range(40):
            with staged_bundle(own_path, force=True) as folder:
                for name in manifest.files:
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_text(str(version))
                seal_bundle(folder, msgspec.structs.replace(manifest, parameters=version))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert len(seen) > 1


@pytest.mark.parametrize("change", ["model", "source"])
def test_a_variant_is_not_added_to_a_bundle_that_took_the_place_of_its_own(
    own_path: Path, change: str
) -> None:
    opened = open_bundle(own_path)
    manifest = opened.manifest
    if change == "source":
        (own_path / "fp32/weights.bin").write_bytes(b"others")
    else:
        manifest = msgspec.structs.replace(manifest, parameters=7)
    seal_bundle(own_path, manifest)
    before = (own_path / "manifest.json").read_bytes()
    with (
        pytest.raises(BundleError, match="was replaced by another bundle meanwhile"),
        staged_variant(opened, "new", source="fp32"),
    ):
        pass
    assert (own_path / "manifest.json").read_bytes() == before


def test_a_variant_is_added_beside_one_that_was_added_meanwhile(own_path: Path) -> None:
    opened = open_bundle(own_path)
    specs = opened.graphs("fp32")
    for name in ("first", "second"):
        with staged_variant(opened, name, source="fp32") as staged:
            (staged.folder / "file").write_bytes(b"")
            moved = {
                role.value: msgspec.structs.replace(spec, file=f"{staged.home}/file")
                for role, spec in specs.items()
            }
            staged.variant = msgspec.structs.replace(opened.variant("fp32"), **moved)
    assert list(open_bundle(own_path).manifest.variants) == ["fp32", "first", "second"]


def test_a_manifest_that_is_a_link_is_refused(own_path: Path, tmp_path: Path) -> None:
    (own_path / MANIFEST_FILE).rename(tmp_path / "elsewhere.json")
    (own_path / MANIFEST_FILE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(
        BundleError, match=r"manifest\.json is a link; a bundle holds its files its"
    ):
        open_bundle(own_path)
