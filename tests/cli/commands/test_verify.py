"""`hybrid-deploy verify`: what it refuses to call right."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import GoldenSample
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.runtime.backends.onnxruntime import variant_sessions
from tests.fakes.edited_graph import edit_graph


def verify(path: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["verify", str(path), *args])


def with_golden(path: Path, *golden: GoldenSample) -> None:
    """Replaces the golden samples of a bundle."""
    seal_bundle(path, msgspec.structs.replace(open_bundle(path).manifest, golden=golden))


def test_a_bundle_without_golden_samples_is_not_ok(own_path: Path) -> None:
    with_golden(own_path)
    result = verify(own_path, "--format", "json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert (row["samples"], row["verdict"]) == (0, "not checked: no golden samples")
    first, last = result.stderr.splitlines()
    assert first.endswith(" files are as they were written")
    assert last == (
        f"error: {own_path} has no golden samples to decode, so no variant was checked; "
        "export it again with --samples FOLDER"
    )


def test_wrong_tokens_of_the_float_variant_fail(own_path: Path) -> None:
    (sample,) = open_bundle(own_path).manifest.golden
    with_golden(own_path, msgspec.structs.replace(sample, tokens=(*sample.tokens[:-1], 9)))
    result = verify(own_path)
    assert result.exit_code == 1
    assert "differs from the original model" in result.stdout
    assert "does not give the original model's tokens" in result.stderr


def test_a_kept_example_is_decoded_by_every_variant(tiny_export: ExportJob, tmp_path: Path) -> None:
    out = tmp_path / "out.bundle"
    run_export(replace(tiny_export, golden={}), out)
    quantize_bundle(out, "fp16")
    (sample,) = open_bundle(out).manifest.golden
    assert (sample.file, sample.is_example) == ("golden/example.npz", True)
    result = verify(out, "--format", "json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [(row["variant"], row["tokens"], row["verdict"]) for row in rows] == [
        (variant, len(sample.tokens), "ok") for variant in ("fp32", "fp16")
    ]
    text = CliRunner().invoke(main, ["run", str(out), str(out / sample.file)])
    assert text.stdout == f"{sample.text}\n"
    with_golden(out, msgspec.structs.replace(sample, tokens=(*sample.tokens[:-1], 9)))
    assert verify(out).exit_code == 1


def test_a_fixed_batch_decodes_the_sample_in_every_row(
    tiny_export: ExportJob, tmp_path: Path
) -> None:
    out = tmp_path / "out.bundle"
    run_export(replace(tiny_export, form=replace(tiny_export.form, batch=3)), out)
    result = verify(out)
    assert result.exit_code == 0, result.stderr


def test_a_bundle_whose_every_variant_differs_fails_without_a_float_variant(
    own_path: Path,
) -> None:
    quantize_bundle(own_path, "fp16")
    (sample,) = open_bundle(own_path).manifest.golden
    manifest = open_bundle(own_path).manifest
    shutil.rmtree(own_path / "fp32")
    only_half = {"fp16": manifest.variants["fp16"]}
    seal_bundle(own_path, msgspec.structs.replace(manifest, variants=only_half))
    assert verify(own_path).exit_code == 0
    with_golden(own_path, msgspec.structs.replace(sample, tokens=(*sample.tokens[:-1], 9)))
    result = verify(own_path)
    assert result.exit_code == 1
    assert "does not give the original model's tokens" in result.stderr


def test_another_text_for_the_same_tokens_fails(own_path: Path) -> None:
    (sample,) = open_bundle(own_path).manifest.golden
    with_golden(own_path, msgspec.structs.replace(sample, text=f"{sample.text}x"))
    result = verify(own_path, "--format", "json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)
    assert row["equal"] == 1
    assert row["verdict"] == "the tokens are the original model's, their text is not"


@pytest.mark.parametrize("graph", ["prefill", "step", "beam_step"])
def test_a_graph_that_no_golden_sample_needs_is_loaded_too(own_path: Path, graph: str) -> None:
    manifest = open_bundle(own_path).manifest
    (own_path / "fp32" / f"{graph}.onnx").write_bytes(b"no graph")
    seal_bundle(own_path, manifest)
    result = verify(own_path)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and f"fp32/{graph}.onnx" in last


@pytest.mark.parametrize("role", [GraphRole.PREFILL, GraphRole.STEP])
def test_a_graph_that_no_golden_sample_needs_decodes_one_too(
    own_path: Path, role: GraphRole
) -> None:
    opened = open_bundle(own_path)
    edit_graph(opened, role, lambda weights: np.negative(weights, out=weights))
    seal_bundle(own_path, opened.manifest)
    result = verify(own_path)
    assert result.exit_code == 1
    assert "does not agree with the step graph: after " in result.stderr.splitlines()[-1]


def test_a_beam_step_that_does_not_replace_the_step_decodes_a_sample_too(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(own_path)
    edit_graph(opened, GraphRole.BEAM_STEP, lambda weights: np.negative(weights, out=weights))
    seal_bundle(own_path, opened.manifest)
    monkeypatch.setattr(variant_sessions, "_have_same_tensors", lambda specs: False)
    result = verify(own_path)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "beam_step.onnx does not agree with the step graph: after " in last


def test_a_graph_in_the_place_of_another_is_refused(own_path: Path) -> None:
    opened = open_bundle(own_path)
    shutil.copy(own_path / "fp32/step.onnx", own_path / "fp32/prefill.onnx")
    seal_bundle(own_path, opened.manifest)
    result = verify(own_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: {own_path / 'fp32/prefill.onnx'} is another graph than the manifest says: its "
        "inputs differ; export the bundle again"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"hello", "page.png is not an image"), (b"", "page.png is not an image")],
)
def test_a_golden_file_that_is_damaged_is_named(
    own_path: Path, content: bytes, reason: str
) -> None:
    manifest = open_bundle(own_path).manifest
    (own_path / "golden/page.png").write_bytes(content)
    seal_bundle(own_path, manifest)
    assert_golden_is_named(verify(own_path), own_path / "golden/page.png", reason)


def test_numbers_that_are_none_in_a_golden_file_are_named(own_path: Path) -> None:
    (sample,) = open_bundle(own_path).manifest.golden
    np.savez(own_path / "golden/page.npz", image=np.full((1, 1, 8, 24), np.nan, np.float32))
    seal_bundle(own_path, open_bundle(own_path).manifest)
    with_golden(own_path, msgspec.structs.replace(sample, file="golden/page.npz"))
    assert_golden_is_named(verify(own_path), own_path / "golden/page.npz", "holds NaN or infinity")


def test_a_prompt_of_a_golden_sample_that_is_too_long_is_named(own_path: Path) -> None:
    (sample,) = open_bundle(own_path).manifest.golden
    with_golden(own_path, msgspec.structs.replace(sample, prompt=(1,) * 99))
    assert_golden_is_named(verify(own_path), own_path / sample.file, "99")


def assert_golden_is_named(result: Result, path: Path, reason: str) -> None:
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: golden sample {path} cannot be decoded: ")
    assert reason in last and last.endswith("; install what is missing, or export the bundle again")
    assert tempfile.gettempdir() not in last.replace(str(path), "")


def test_a_start_token_that_the_decoder_lacks_is_one_line(own_path: Path) -> None:
    manifest = open_bundle(own_path).manifest
    defaults = msgspec.structs.replace(manifest.generation, start_tokens=(99999,))
    seal_bundle(own_path, msgspec.structs.replace(manifest, generation=defaults))
    result = verify(own_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: the step graph does not know a token, the largest that it read is 99999; give "
        "known tokens with --prompt, or export the bundle again with other start tokens"
    )
