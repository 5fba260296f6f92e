"""Tests the export of a Hugging Face folder, and the axes that vary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    EncoderInput,
    FilterBank,
    LogMel,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import DimRange
from hybrid_deploy.cli import main
from hybrid_deploy.export.huggingface.folder_job import varying_axes
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from hybrid_deploy.runtime.session.session import load_session

START = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny captioner that save_pretrained wrote."""
    path = tmp_path_factory.mktemp("models") / "captioner"
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = transformers.ViTConfig(hidden_size=16, image_size=16, patch_size=8, **sizes)
    decoder = transformers.TrOCRConfig(
        vocab_size=30, d_model=16, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=32, max_position_embeddings=12, cross_attention_hidden_size=16,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, 1, 29
    model = transformers.VisionEncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
    model.generation_config.update(
        max_length=10, decoder_start_token_id=START, eos_token_id=29, pad_token_id=1
    )
    model.save_pretrained(path)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(path)
    return path


def test_a_folder_becomes_a_bundle_in_one_command(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bundle"
    result = CliRunner().invoke(main, ["export", str(folder), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 1 input (")
    assert "has no tokenizer, so the tokens are printed as numbers" in result.stderr
    manifest = open_bundle(out).manifest
    assert (manifest.name, manifest.capacity) == ("captioner", 10)
    picture = tmp_path / "p.png"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    (line,), _ = load_session(out).run_files([picture])
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    values = processor(Image.open(picture), return_tensors="pt").pixel_values
    expected = model.generate(values, max_length=10, num_beams=1, do_sample=False)[0].tolist()
    assert [START, *line.tokens] == expected


def test_options_that_the_folder_already_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    args = ["export", str(folder), "--start", "1", "--weights", "w.pt", "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(main, args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: the folder {folder} describes itself; leave out --start, --weights\n"
    )


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(tmp_path), "-o", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {tmp_path} has no config.json; give a folder that save_pretrained wrote\n"
    )


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        (TextInput("x", "t.json", 512, "mask", prefix=(1,) * 10), ("x", 12, 128, 512)),
        (AudioInput("x", 16000, Waveform(), "mask"), ("samples", 1600, 120000, 480000)),
        (AudioInput("x", 16000, FilterBank(80), "mask", max_seconds=4), ("frames", 10, 100, 400)),
        (AudioInput("x", 16000, LogMel(80, 400, 160, 480000)), None),
        (ArrayInput("x"), None),
    ],
)
def test_axes_that_follow_a_length(
    spec: EncoderInput, axis: tuple[str, int, int, int] | None
) -> None:
    example = {"x": torch.zeros(1, 4), "mask": torch.ones(1, 4)}
    axes = varying_axes((spec,), example)
    if axis is None:
        assert axes == {}
    else:
        name, *sizes = axis
        expected = {1: DynamicAxis(name, DimRange(*sizes))}
        assert axes == {"x": expected, "mask": expected}


def test_a_folder_keeps_its_example_or_real_inputs(folder: Path, tmp_path: Path) -> None:
    out, samples = tmp_path / "out.bundle", tmp_path / "samples"
    samples.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(samples / f"{number}.png")
    result = CliRunner().invoke(
        main, ["export", str(folder), "--samples", str(samples), "-o", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 3 inputs (")
    assert [s.file for s in open_bundle(out).manifest.golden] == ["golden/0.png", "golden/1.png"]
    result = CliRunner().invoke(main, ["export", str(folder), "-o", str(out), "--force"])
    assert "golden samples for verify: 1, of " in result.stderr
    assert "the example alone: --samples FOLDER keeps real inputs" in result.stderr
    assert [s.file for s in open_bundle(out).manifest.golden] == ["golden/example.npz"]
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0
