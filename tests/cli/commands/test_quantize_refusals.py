"""Refusals of `hybrid-deploy quantize`: one line, an exit code, and an unchanged bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.cli import main
from tests.fakes.edited_bundle import with_close_logits

Run = Callable[..., Result]


@pytest.fixture
def here(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the bundle, which is the working directory."""
    monkeypatch.chdir(bundle.folder.parent)
    return bundle.folder.parent


@pytest.fixture
def run(here: Path) -> Run:
    """Quantizes the tiny bundle."""

    def invoke(*options: object) -> Result:
        return CliRunner().invoke(main, ["quantize", "tiny.bundle", *map(str, options)])

    return invoke


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--precision int8",
            "int8 needs calibration samples; give --samples FOLDER, or --golden",
        ),
        ("--precision int8 --samples none", "none does not exist"),
        (
            "--precision int3",
            "unknown precision 'int3'; choose one of: fp16, bf16, int8, int8-full, int8-cpu, "
            "int4-cpu, fp32-cpu, int8-weights, int4-weights, fp8",
        ),
        (
            "",
            "name a precision: fp16, bf16, int8, int8-full, int8-cpu, int4-cpu, fp32-cpu, "
            "int8-weights, int4-weights, fp8",
        ),
        (
            "--encoder int4-weights",
            "unknown encoder form 'int4-weights'; choose one of: fp32, fp16, bf16, int8, "
            "int8-cpu, fp8, fp32-cpu",
        ),
        (
            "--decoder fp32",
            "encoder and decoder both stay fp32; name another form for one of them",
        ),
        (
            "--precision int8-weights --block 33",
            "no block of 33 weights; choose one of: 32, 64, 128",
        ),
        (
            "--precision fp16 --block 32",
            "fp16 has no weights in blocks; choose int8-weights or int4-weights for the decoder",
        ),
        ("--precision fp16 --floats fp16", "fp16 has no floats to choose; leave --floats out"),
        (
            "--precision fp8 --target orin",
            "Jetson Orin (sm_87) has no fp8 for the encoder: floats of 8 bits begin with Ada "
            "(sm_89) (orin knows: bf16, fp16, fp32, int4-weights, int8, int8-weights)",
        ),
        (
            "--precision fp16 --name fp32 --force",
            "variant fp32 would replace its own source; give another name",
        ),
        (
            "--precision fp16 --metric cer",
            "the metric cer needs true texts, and no sample has one; name a folder with a "
            "labels.csv (columns file, text)",
        ),
        (
            "--auto --precision int8",
            "--auto chooses the precision for this CPU; leave --precision, --encoder, --decoder, "
            "--floats and --target out",
        ),
        (
            "--auto",
            "int8-cpu needs calibration samples; give --samples FOLDER, or --golden",
        ),
        (
            "--precision fp16 --max-drop -1",
            "Invalid value for '--max-drop': -1.0 is not in the range x>=0. "
            "See 'hybrid-deploy quantize --help'.",
        ),
    ],
)
def test_wrong_requests_are_one_line(run: Run, bundle: Bundle, options: str, message: str) -> None:
    result = run(*options.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {message}\n"
    assert open_bundle(bundle.folder) == bundle


def test_golden_samples_of_a_bundle_without_any(run: Run) -> None:
    result = run("--precision", "int8", "--golden")
    assert result.stderr == ("error: tiny.bundle has no golden samples; give --samples FOLDER\n")
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_quantized_variant_is_no_source(run: Run, bundle: Bundle) -> None:
    """The variant `fp32` of this bundle is a float16 one."""
    float_variant = bundle.variant("fp32")
    halves = msgspec.structs.replace(float_variant, precision=Precision("fp16", "fp16"))
    seal_bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants={"fp32": halves}))
    result = run("--precision", "int8")
    assert result.stderr == (
        "error: variant fp32 of tiny.bundle is already quantized (encoder fp16, decoder fp16); "
        "quantize fp32\n"
    )
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_variant_is_not_replaced_without_force(run: Run) -> None:
    assert run("--precision", "fp16").exit_code == 0
    again = run("--precision", "fp16")
    assert again.stderr == (
        "error: variant fp16 of tiny.bundle already exists; give --force to replace it\n"
    )
    assert again.exit_code == 2
    assert run("--precision", "fp16", "--force").exit_code == 0


def test_a_sample_that_is_not_a_number(run: Run, here: Path) -> None:
    folder = here / "arrays"
    folder.mkdir()
    image = np.zeros((1, 1, 32, 64), np.float32)
    np.savez(folder / "a.npz", image=image)
    image[0, 0, 3, 3] = np.nan
    np.savez(folder / "b.npz", image=image)
    result = run("--precision", "int8", "--samples", "arrays")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: encoder/image holds NaN or infinity on these samples; check the samples, then the "
        "model's weights (arrays/b.npz)\n"
    )


def test_a_budget_that_no_layer_holds(run: Run, bundle: Bundle) -> None:
    before = with_close_logits(bundle)
    result = run("--precision", "fp16", "--max-drop", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: the budget of 1 % of tokens does not hold: fp16 loses 100.00; no variant was "
        "written\n"
    )
    assert open_bundle(bundle.folder) == before
