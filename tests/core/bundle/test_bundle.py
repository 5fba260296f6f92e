import json
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import (
    MANIFEST_FILE,
    Bundle,
    open_bundle,
    seal_bundle,
    staged_bundle,
    staged_variant,
)
from hybrid_deploy.bundle.manifest import SCHEMA_VERSION, decode_manifest, encode_manifest
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BundleError, InputError, OutputExistsError


def test_manifest_round_trip(tiny_bundle: Bundle) -> None:
    data = encode_manifest(tiny_bundle.manifest)
    assert decode_manifest(data, "here") == tiny_bundle.manifest
    assert json.loads(data)["manifest"]["name"] == "tiny"


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


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_files_outside_the_bundle_are_refused(
    own_path: Path, tiny_bundle: Bundle, name: str
) -> None:
    record = next(iter(tiny_bundle.manifest.files.values()))
    manifest = msgspec.structs.replace(tiny_bundle.manifest, files={name: record})
    (own_path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="names a file outside itself"):
        open_bundle(own_path)


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
        graph = msgspec.structs.replace(variant.encoder, file=f"{staged.home}/step.onnx")
        staged.variant = msgspec.structs.replace(variant, encoder=graph, prefill=graph, step=graph)


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
