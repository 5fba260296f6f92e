"""A manifest names files in its bundle alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import FileRecord, Manifest, Tokenizer, encode_manifest
from hybrid_deploy.bundle.paths import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    check_outside_bundles,
    check_paths,
    check_variant_name,
    is_bundle,
)
from hybrid_deploy.errors import BundleError, UsageError

RECORD = FileRecord(sha256="0" * 64, size_bytes=0)
OUTSIDE = [
    "../outside",
    "/etc/passwd",
    "fp32/../../outside",
    "fp32//step.onnx",
    "./fp32/step.onnx",
    "fp32/.",
    "fp32\\step.onnx",
    "C:step.onnx",
    "fp32/a\0b",
    "",
    MANIFEST_FILE,
]


def changed(manifest: Manifest, **fields: Any) -> Manifest:
    return msgspec.structs.replace(manifest, **fields)


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_the_bundle_are_refused(
    own_path: Path, tiny_bundle: Bundle, name: str
) -> None:
    manifest = changed(tiny_bundle.manifest, files=tiny_bundle.manifest.files | {name: RECORD})
    (own_path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    with pytest.raises(BundleError, match="names a file outside its bundle"):
        open_bundle(own_path)


@pytest.mark.parametrize(
    "name",
    [
        "\u2024\u2024/step.onnx",
        "..\uff0fstep.onnx",
        "fp32/NUL.onnx",
        "fp32/com1",
        "fp32/step.onnx.",
        "fp32 /step.onnx",
        SIGNATURE_FILE,
        ".pending.json",
    ],
)
def test_files_that_are_others_on_another_system_are_refused(
    tiny_bundle: Bundle, name: str
) -> None:
    manifest = changed(tiny_bundle.manifest, files=tiny_bundle.manifest.files | {name: RECORD})
    with pytest.raises(BundleError, match="names a file that means another elsewhere"):
        check_paths(manifest, "it")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fp32/step.onnx", "fp32/STEP.onnx"),
        ("fp32", "FP32"),
        ("golden/caf\u00e9", "golden/cafe\u0301"),
    ],
)
def test_files_that_are_one_on_another_system_are_refused(
    tiny_bundle: Bundle, one: str, other: str
) -> None:
    more = {f"{one}/a": RECORD, f"{other}/b": RECORD}
    manifest = changed(tiny_bundle.manifest, files=tiny_bundle.manifest.files | more)
    with pytest.raises(BundleError, match="which are one elsewhere"):
        check_paths(manifest, "it")


def test_files_with_any_other_name_are_accepted(tiny_bundle: Bundle) -> None:
    more = {f"golden/{name}": RECORD for name in ("\u753b 1.png", ".a", "nul-.x", "x\u00b2", "com")}
    check_paths(changed(tiny_bundle.manifest, files=tiny_bundle.manifest.files | more), "it")


def test_every_path_that_is_used_is_listed_with_a_hash(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    check_paths(manifest, "it")
    step = msgspec.structs.replace(manifest.variants["fp32"].step, file="fp32/other.onnx")
    variant = msgspec.structs.replace(manifest.variants["fp32"], step=step)
    sample = msgspec.structs.replace(manifest.golden[0], file="golden/other.npz")
    for wrong in (
        changed(manifest, variants={"fp32": variant}),
        changed(manifest, golden=(sample,)),
        changed(manifest, vocabulary=Tokenizer("tokenizer.json")),
    ):
        with pytest.raises(BundleError, match="which is not among its files"):
            check_paths(wrong, "it")


@pytest.mark.parametrize("folder", ["golden", "fp32/deep", "fp32"])
def test_each_variant_has_a_folder_of_its_own(tiny_bundle: Bundle, folder: str) -> None:
    manifest = tiny_bundle.manifest
    own = manifest.variants["fp32"]
    graphs = {
        role: msgspec.structs.replace(graph, file=f"{folder}/{Path(graph.file).name}")
        for role in ("encoder", "step", "prefill", "beam_step")
        if (graph := getattr(own, role)) is not None
    }
    other = msgspec.structs.replace(own, **graphs)
    listed = manifest.files | {graph.file: RECORD for graph in graphs.values()}
    wrong = changed(manifest, variants=manifest.variants | {"other": other}, files=listed)
    with pytest.raises(BundleError, match="gives variant 'other' no folder of its own"):
        check_paths(wrong, "it")


def test_a_link_in_the_place_of_a_file_or_folder_is_refused(own_path: Path, tmp_path: Path) -> None:
    for name in ("fp32/step.onnx", "fp32"):
        outside = tmp_path / "outside"
        (own_path / name).rename(outside)
        (own_path / name).symlink_to(outside)
        with pytest.raises(BundleError, match="is a link; a bundle holds its files itself"):
            open_bundle(own_path)
        (own_path / name).unlink()
        outside.rename(own_path / name)
    open_bundle(own_path)


@pytest.mark.parametrize("name", ["int8", "fp16+fp32-cpu", "INT8.v2_final-3", "a" * 64, "0"])
def test_names_of_variants(name: str) -> None:
    check_variant_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 65,
        ".",
        "..",
        ".hidden",
        "-x",
        "a b",
        "a/b",
        "a\\b",
        "a\n",
        "ü",
        "Golden",
        "manifest.json",
    ],
)
def test_what_cannot_name_a_variant(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a variant"):
        check_variant_name(name)


def test_a_pipe_in_place_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_FILE)
    assert not is_bundle(tmp_path)
    check_outside_bundles(tmp_path / "key")
