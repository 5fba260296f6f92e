"""`hybrid-deploy verify`: what it refuses to call right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import GoldenSample
from hybrid_deploy.calibration.quantize import quantize_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.export.exporter import run_export


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
