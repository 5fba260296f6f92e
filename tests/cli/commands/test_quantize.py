"""`hybrid-deploy quantize`: its report, and the variant that it adds to a bundle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import GoldenSample, Precision
from hybrid_deploy.calibration.evaluation.decode_all import decode_all
from hybrid_deploy.calibration.statistics.scales import read_scales
from hybrid_deploy.calibration.variants.auto_select import Speed
from hybrid_deploy.cli import main
from hybrid_deploy.runtime.preprocess.prepare import prepare
from tests.fakes.edited_bundle import with_edited_weights, with_sensitive_head

Run = Callable[..., Result]

NUMBER = r"[\d.]+(e-\d\d)?"
SIZE = r"\d\.\d\d MB \(float \d\.\d\d MB, \d\d %\)"
LOGITS = rf"logits: KL mean {NUMBER}, largest difference {NUMBER}"


@pytest.fixture
def here(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the bundle, which is the working directory."""
    monkeypatch.chdir(bundle.folder.parent)
    return bundle.folder.parent


@pytest.fixture
def run(here: Path) -> Run:
    """Quantizes the tiny bundle, by its path relative to the working directory."""

    def invoke(*options: object) -> Result:
        return CliRunner().invoke(main, ["quantize", "tiny.bundle", *map(str, options)])

    return invoke


@pytest.fixture
def lines(here: Path) -> Path:
    """Two pictures of noise."""
    folder = here / "lines"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, width in enumerate((40, 64)):
        pixels = rng.integers(0, 256, (32, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def truncated(lines: Path) -> Path:
    """A third picture, whose file is cut off."""
    path = lines / "2.png"
    path.write_bytes((lines / "1.png").read_bytes()[:300])
    return path


@pytest.fixture
def labels(lines: Path, bundle: Bundle) -> Path:
    """Labels for both pictures: the text of the float variant, and one with two other digits."""
    preprocess = bundle.manifest.preprocess
    inputs = [prepare([lines / f"{i}.png"], preprocess, folder=bundle.folder) for i in (0, 1)]
    texts = decode_all(bundle, "fp32", inputs).texts
    assert texts == ("333333", "333333")
    (lines / "labels.csv").write_text("file,text\n0.png,333333\n1.png,333344\n")
    return lines


def overflow(name: str, array: NDArray[Any]) -> None:
    """Makes the second convolution overflow."""
    if name == "encoder.columns.stages.4.weight":
        array[...] = 3e38


def precision_of(folder: Path, variant: str) -> Precision:
    return open_bundle(folder / "tiny.bundle").variant(variant).precision


def record_of(result: Result) -> dict[str, Any]:
    assert (result.exit_code, result.stderr) == (0, "")
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_two_lines_on_stdout(run: Run, lines: Path, here: Path) -> None:
    result = run("--precision", "int8", "--samples", "lines")
    assert (result.exit_code, result.stderr) == (0, "")
    size, tokens = result.stdout.splitlines()
    assert re.fullmatch(f"int8: {SIZE}", size)
    same = "2 of 2 sequences and 12 of 12 tokens as in float; "
    assert re.fullmatch(same + LOGITS, tokens)
    assert precision_of(here, "int8") == Precision("int8", "int8-weights")


def test_json_record(run: Run, lines: Path, bundle: Bundle) -> None:
    record = record_of(run("--precision", "fp16", "--samples", lines, "--format", "json"))
    now = open_bundle(bundle.folder)
    assert (record["bundle"], record["variant"], record["precision"]) == (
        "tiny.bundle", "fp16", "fp16",
    )  # fmt: skip
    assert (record["size_bytes"], record["reference_size_bytes"]) == (
        now.variant_size_bytes("fp16"), now.variant_size_bytes("fp32"),
    )  # fmt: skip
    assert (record["calibration_samples"], record["samples"], record["same_tokens"]) == (0, 2, 12)
    assert (record["drop"], record["drop_unit"]) == (0, "% of tokens")
    assert record["skipped"] == record["kept_float"] == record["wide"] == record["ranking"] == []
    assert record["cer_percent"] is record["metric"] is None
    assert record["emulated"] is False


def test_components_blocks_and_targets(run: Run, lines: Path, here: Path) -> None:
    options = ("--encoder", "int8-cpu", "--decoder", "int4-weights", "--block", 32)
    result = run(*options, "--target", "cpu", "--samples", lines)
    assert result.stdout.startswith("int8-cpu+int4-weights: ")
    assert precision_of(here, "int8-cpu+int4-weights") == Precision("int8-cpu", "int4-weights")
    provenance = open_bundle(here / "tiny.bundle").variant("int8-cpu+int4-weights").provenance
    assert ", blocks of 32, minmax over 2 samples " in provenance


def test_float16_for_what_is_not_quantized(run: Run, here: Path) -> None:
    result = run("--precision", "int8-weights", "--floats", "fp16", "--name", "small")
    assert result.stdout.startswith("small: ")
    assert precision_of(here, "small") == Precision("fp16", "int8-weights")
    assert "other floats fp16" in open_bundle(here / "tiny.bundle").variant("small").provenance


def test_emulation_of_bfloat16_is_reported(run: Run) -> None:
    result = run("--precision", "bf16")
    assert result.exit_code == 0
    last = result.stdout.splitlines()[-1]
    assert last == "emulated in float32: no CPU kernels compute in bfloat16"


def test_scales_of_a_file(run: Run, lines: Path, here: Path) -> None:
    calibrate = ["calibrate", "tiny.bundle", "--samples", "lines", "-o", "scales.json"]
    assert CliRunner().invoke(main, calibrate).exit_code == 0
    both = ("--scales", "scales.json", "--samples", lines)
    assert run("--precision", "int8", *both).stderr == (
        "error: scales come from a file or from samples; give one of the two\n"
    )
    record = record_of(run("--precision", "int8", "--scales", "scales.json", "--format", "json"))
    assert record["calibration_samples"] == 2
    assert read_scales(here / "tiny.bundle/int8/scales.json") == read_scales(here / "scales.json")


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (-1, -1, "have no range with a width in encoder, as if every tensor were constant"),
        (1, -1, "have 1 to -1 as the range of .* in encoder, which no samples have"),
        (-1e39, 1, "have -1e\\+39 to 1 as the range of .* in encoder, which no samples have"),
    ],
)
def test_scales_that_nobody_has_measured(
    run: Run, lines: Path, here: Path, low: float, high: float, reason: str
) -> None:
    calibrate = ["calibrate", "tiny.bundle", "--samples", "lines", "-o", "scales.json"]
    assert CliRunner().invoke(main, calibrate).exit_code == 0
    scales = json.loads((here / "scales.json").read_bytes())
    for ranges in scales["ranges"].values():
        for span in ranges.values():
            span.update(low=low, high=high)
    (here / "scales.json").write_text(json.dumps(scales))
    result = run("--precision", "int8", "--scales", "scales.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.match(f"error: the scales {reason}; calibrate again", result.stderr)
    assert not (here / "tiny.bundle" / "int8").exists()


def test_a_variant_without_any_equal_sequence_is_doubted(
    run: Run, lines: Path, here: Path, bundle: Bundle
) -> None:
    with_sensitive_head(bundle)
    result = run("--precision", "int8", "--samples", lines)
    assert result.exit_code == 0
    assert "0 of 2 sequences" in result.stdout
    assert "no sequence of int8 is as in fp32: check its texts" in result.stderr


def test_scales_of_another_model(run: Run, lines: Path, bundle: Bundle) -> None:
    calibrate = ["calibrate", "tiny.bundle", "--samples", "lines", "-o", "scales.json"]
    assert CliRunner().invoke(main, calibrate).exit_code == 0
    with_edited_weights(bundle, overflow)
    result = run("--precision", "int8", "--scales", "scales.json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: the scales are of another model (tiny with other weights), not of tiny fp32 in "
        "tiny.bundle; calibrate this bundle\n"
    )


def test_golden_samples(run: Run, lines: Path, bundle: Bundle) -> None:
    shutil.copy(lines / "1.png", bundle.folder / "golden.png")
    golden = (GoldenSample("golden.png", (6,) * 6, "333333"),)
    seal_bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, golden=golden))
    alone = record_of(run("--precision", "int8", "--golden", "--format", "json"))
    assert (alone["calibration_samples"], alone["samples"]) == (1, 1)
    options = ("--golden", "--samples", lines, "--force", "--format", "json")
    both = record_of(run("--precision", "int8", *options))
    assert (both["calibration_samples"], both["samples"]) == (3, 3)


def test_bad_samples(run: Run, lines: Path, truncated: Path) -> None:
    reason = "lines/2.png is a damaged image: image file is truncated"
    refused = run("--precision", "int8", "--samples", "lines")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"error: {reason}; --skip-bad leaves it out\n"
    options = ("--precision", "int8", "--samples", "lines", "--skip-bad", "--format", "json")
    done = run(*options)
    assert (done.exit_code, done.stderr) == (0, f"left out: {reason}\n")
    record = json.loads(done.stdout)
    assert record["skipped"] == [{"sample": "lines/2.png", "reason": reason}]
    assert (record["calibration_samples"], record["samples"]) == (2, 2)


def test_labels_give_error_rates(run: Run, labels: Path) -> None:
    result = run("--precision", "int8-weights", "--eval", "lines")
    assert (result.exit_code, result.stderr) == (0, "")
    size, *accuracy, tokens = result.stdout.splitlines()
    assert re.fullmatch(f"int8-weights: {SIZE}", size)
    assert accuracy == [
        "texts of 2 labelled inputs, with 95 % intervals; of so few, they mean little:",
        # two of twelve digits
        "  CER 16.67 % (0.00 to 33.33), float 16.67 %, change +0.00 (+0.00 to +0.00)",
        "  exact 50.0 % (0.0 to 100.0), float 50.0 %, change +0.0 (+0.0 to +0.0)",
    ]
    assert tokens.startswith("2 of 2 sequences and 12 of 12 tokens as in float; ")
    options = ("--name", "again", "--format", "json")
    record = record_of(run("--precision", "int8-weights", "--eval", labels, *options))
    assert record["cer_percent"] == record["reference_cer_percent"] == pytest.approx(100 / 6)
    assert (record["exact_percent"], record["wer_percent"]) == (50, None)
    assert (record["drop"], record["drop_unit"]) == (0, "CER points")


def test_normalised_texts_hold_a_budget(run: Run, labels: Path) -> None:
    (labels / "labels.csv").write_text("file,text\n0.png,(all) 333333.\n1.png,333344\n")
    options = ("--precision", "int8-weights", "--eval", labels, "--format", "json")
    record = record_of(run(*options, "--max-drop", 0, "--normalize", "basic"))
    assert (record["normalizer"], record["drop_unit"]) == ("basic", "CER points (basic)")
    assert record["reference_cer_percent"] == pytest.approx(100 / 6)
    assert (record["exact_percent"], record["exact_change_points"]) == (50, 0)
    assert (record["drop"], record["drop_low"], record["drop_high"]) == (0, 0, 0)
    record = record_of(run(*options, "--name", "as-decoded"))
    assert (record["normalizer"], record["exact_percent"]) == ("none", 0)


def test_a_normaliser_needs_true_texts(run: Run, lines: Path) -> None:
    refused = run("--precision", "int8-weights", "--eval", "lines", "--normalize", "basic")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == (
        "error: --normalize needs true texts, and no sample has one; name a folder with a "
        "labels.csv (columns file, text)\n"
    )


def test_own_metric(run: Run, labels: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    (here / "quantize_command_metric.py").write_text(
        "def right(expected, given):\n"
        "    return 10 * sum(a == b for a, b in zip(expected, given))\n"
    )
    metric = "quantize_command_metric:right"
    result = run("--precision", "int8-weights", "--eval", labels, "--metric", metric)
    line = f"{metric}: 10 (0 to 20), float 10, worse by +0 to +0"
    assert line in result.stdout.splitlines()
    assert result.exit_code == 0
    missing = run("--precision", "fp16", "--eval", labels, "--metric", f"{metric}s")
    assert missing.stderr == "error: quantize_command_metric has no function 'rights'\n"
    assert missing.exit_code == 2


def test_layers_that_go_back_to_float_are_named(
    run: Run, lines: Path, bundle: Bundle, here: Path
) -> None:
    with_sensitive_head(bundle)
    options = ("--precision", "int8-weights", "--samples", lines, "--max-drop", 1)
    result = run(*options)
    assert (result.exit_code, result.stderr) == (0, "")
    _, tokens, ranked, *table, last = result.stdout.splitlines()
    assert tokens.startswith("2 of 2 sequences and 12 of 12 tokens as in float; ")
    assert ranked == "the most sensitive of 7 layers, each quantized alone:"
    assert table[0].split()[:4] == ["layer", "operator", "parameters", "KL"]
    assert table[2].split()[:3] == ["decoder/head", "MatMul", "416"]
    assert len(table) == 2 + 7
    assert last == "back in float to hold the budget: decoder/head"
    record = record_of(run(*options, "--name", "again", "--format", "json"))
    assert record["kept_float"] == ["decoder/head"]
    assert record["ranking"][0]["layer"] == "decoder/head"
    assert len(record["ranking"]) == 7


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replaces the clock: returns a function that sets how much faster variants are than float."""

    def set_speedup(speedup: float) -> None:
        def speeds(bundles: Mapping[str, object], *_: object) -> dict[str, Speed]:
            return dict.fromkeys(bundles, Speed(8 / speedup, speedup, speedup))

        monkeypatch.setattr(
            "hybrid_deploy.calibration.variants.variant_builder.measure_speeds", speeds
        )

    return set_speedup


def test_auto(
    run: Run, lines: Path, truncated: Path, here: Path, timed: Callable[[float], None]
) -> None:
    timed(2)
    result = run("--auto", "--samples", "lines", "--skip-bad", "--name", "fast", "--threads", 1)
    assert result.exit_code == 0
    assert result.stderr == (
        "left out: lines/2.png is a damaged image: image file is truncated\n"
        "added fast, the fastest that loses at most 0.5\n"
    )
    header, _, *rows = result.stdout.splitlines()
    columns = "variant MB drop from to of total ms x float verdict"
    assert header.split() == columns.split()
    assert [(row.split()[0], row.split("  ")[-1].strip()) for row in rows[:5]] == [
        ("fp32-cpu", "chosen"),
        ("fp32-cpu+int8-cpu", "holds the budget"),
        ("fp32-cpu+int4-cpu", "holds the budget"),
        ("int8-cpu", "holds the budget"),
        ("int4-cpu", "holds the budget"),
    ]
    assert re.fullmatch(f"fast: {SIZE}", rows[5])
    assert precision_of(here, "fast") == Precision("fp32-cpu", "fp32-cpu")


def test_auto_adds_nothing_that_is_not_faster(
    run: Run, lines: Path, bundle: Bundle, timed: Callable[[float], None]
) -> None:
    timed(1)
    result = run("--auto", "--samples", lines, "--format", "json", "--max-drop", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert record["chosen"] is None
    first = record["candidates"][0]
    assert (first["variant"], first["speedup"], first["drop"]) == ("fp32-cpu", 1, 0)
    assert {candidate["verdict"] for candidate in record["candidates"]} == {"not faster than float"}
    text = run("--auto", "--samples", lines)
    assert text.stderr == (
        "nothing was added: no variant is faster than float and within the budget\n"
    )
    assert open_bundle(bundle.folder) == bundle


def test_the_layer_that_overflows_is_named(run: Run, lines: Path, bundle: Bundle) -> None:
    with_edited_weights(bundle, overflow)
    result = run("--precision", "int8", "--samples", "lines")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: encoder/max_pool2d_1 (MaxPool after encoder.columns.stages.4) holds NaN or "
        "infinity on these samples; check the samples, then the model's weights (lines/0.png)\n"
    )
