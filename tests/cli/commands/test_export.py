"""`hybrid-deploy export` of a torch.nn.Module: its bundle, and one line for a wrong request."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.cli import main
from hybrid_deploy.cli.commands.export import describe
from hybrid_deploy.cli.options.model import ModelOptions
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.exporter import ExportReport
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.temporary_names import scratch_name
from tests.conftest import TinyReader, make_tiny

MODEL = "conftest:TinyReader"


@pytest.fixture(autouse=True)
def importable_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.fixture
def line(tmp_path: Path) -> Path:
    path = tmp_path / "line.png"
    pixels = np.random.default_rng(0).integers(0, 255, (16, 48), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def export(*args: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, args)])


def test_a_plain_model_with_weights_and_a_picture(tmp_path: Path, line: Path) -> None:
    out, weights = tmp_path / "out.bundle", tmp_path / "w.safetensors"
    save_file(make_tiny(seed=3).state_dict(), weights)
    result = export(
        MODEL, "--weights", weights, "--example", line, "--height", 8, "--dynamic",
        "image:3=16..64", "--max-length", 8, "--start", 1, "--end", 2, "--name", "tiny",
        "--dtype", "fp16", "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    first, second, compared = result.stdout.splitlines()
    assert first.startswith(f"{out}: 1 input (")
    assert " random prompts (" in first and " at input sizes " in first
    assert " tokens identical to the model, largest difference of a logit " in first
    assert second.startswith("fp16: ") and " tokens as in float; " in compared
    stages = [text.split()[0] for text in result.stderr.splitlines() if text.endswith(" s")]
    assert stages == ["trace", "analyse", "lower", "check", "write"]
    manifest = open_bundle(out).manifest
    assert manifest.name == "tiny"
    assert manifest.generation == GenerationDefaults((1,), (2,), 0, 8)
    assert manifest.preprocess == ImageInput(
        "image", "L", 8, None, 1, 16, 64, 0, 255, (0.5,), (0.5,)
    )
    assert manifest.dims["width"] == DimRange(16, 24, 64)
    costs = {name: variant.step.cost for name, variant in manifest.variants.items()}
    assert costs["fp32"] is not None and costs["fp16"] is not None
    assert costs["fp16"].flops == costs["fp32"].flops
    assert costs["fp16"].weight_bytes == costs["fp32"].weight_bytes / 2
    assert costs["fp16"].cache_bytes == costs["fp32"].cache_bytes / 2
    inspected = CliRunner().invoke(main, ["inspect", str(out)]).stdout
    assert "Cost of one call with batch 1, length 1, width 24, memory 6:" in inspected
    for command in ("run", "verify"):
        files = [str(line)] if command == "run" else []
        done = CliRunner().invoke(main, [command, str(out), *files])
        assert done.exit_code == 0, done.stderr
    model = make_tiny(seed=3)
    image = Image.open(line).resize((24, 8), Image.Resampling.BILINEAR)
    pixels = (torch.from_numpy(np.asarray(image, np.float32)) / 255 - 0.5) / 0.5
    tokens = [1]
    while len(tokens) < 8 and tokens[-1] != 2:
        logits = model.decode(torch.tensor([tokens]), model.encode(pixels[None, None]))
        tokens.append(int(logits[0, -1].argmax()))
    assert manifest.golden[0].tokens == tuple(tokens[1:])


def refusal_of(tmp_path: Path, *args: object) -> str:
    """Returns the one line on stderr of an export that is refused with exit code 2."""
    out = tmp_path / "out.bundle"
    result = export(*args, "-o", out)
    lines = [text for text in result.stderr.splitlines() if text.strip()]
    assert len(lines) == 1, result.stderr
    assert (result.exit_code, result.stdout, out.exists()) == (2, "", False)
    return lines[0].removeprefix("error: ")


def test_missing_options_are_named(tmp_path: Path, line: Path) -> None:
    assert refusal_of(tmp_path, MODEL) == (
        "conftest:TinyReader returned a model, TinyReader; give --example and --max-length to "
        "describe it, as in --example line.png --max-length 64"
    )
    assert "TinyReader; give --max-length to" in refusal_of(tmp_path, MODEL, "--example", line)
    assert "TinyReader; give --example to" in refusal_of(tmp_path, MODEL, "--max-length", 8)


def test_a_job_takes_no_options_of_a_model(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "conftest:job", "--start", 1, "--max-length", 9) == (
        "conftest:job returned an ExportJob, which describes its model itself; "
        "leave out --max-length, --start"
    )


def test_values_that_a_job_cannot_have(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "conftest:job", "--opset", 20) == (
        "opset 20 is not supported; choose one of: 24, 21, 18"
    )
    assert refusal_of(tmp_path, "conftest:job", "--head", "beam") == (
        "unknown head 'beam'; choose one of: logits, argmax, topk"
    )
    assert refusal_of(tmp_path, "conftest:job", "--batch", 0) == (
        "a batch of 0 is not possible; give 1 or more"
    )
    assert refusal_of(tmp_path, "conftest:job", "--head", "topk", "--dtype", "fp16") == (
        "--dtype fp16 needs --head logits, got topk"
    )
    assert refusal_of(tmp_path, "conftest:job", "--opset", 18, "--dtype", "bf16") == (
        "--dtype bf16 needs --opset 24, got 18"
    )


def test_functions_that_are_no_factory(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "os:getcwd") == (
        "os:getcwd returned str, an ExportJob or a torch.nn.Module was expected"
    )
    assert refusal_of(tmp_path, "torch.nn:Linear") == (
        "torch.nn:Linear must be called without arguments: "
        "missing a required argument: 'in_features'"
    )


def test_a_model_without_encode(tmp_path: Path) -> None:
    result = export("torch.nn:Identity", "-o", tmp_path / "out.bundle")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: Identity has no encode() and no decode(); wrap it in a module with "
        "encode(*inputs) -> memory and the full-sequence decode(tokens, *memory) -> logits, in "
        "eval mode (the README shows one under 'Your own model')\n"
    )


def test_weights_that_do_not_fit(tmp_path: Path, line: Path) -> None:
    save_file({"head.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    message = refusal_of(tmp_path, MODEL, "--weights", tmp_path / "w.safetensors")
    assert "w.safetensors does not fit TinyReader: missing encoder.0.weight, " in message
    assert "wrong shape: head.bias of (3,) where the model has (11,)" in message
    torch.save(TinyReader(), tmp_path / "w.pt")
    message = refusal_of(tmp_path, MODEL, "--weights", tmp_path / "w.pt")
    assert "w.pt holds Python objects, which can run code when they are read; convert" in message


@pytest.mark.parametrize(
    ("name", "array", "options", "message"),
    [
        ("no.npy", None, (), "no.npy does not exist"),
        ("no.png", None, (), "no.png does not exist"),
        (
            "a.npy", np.zeros((1, 1, 8, 16)), (),
            "a.npy holds float64 as image; save it with .astype('float32')",
        ),
        (
            "a.npy", np.zeros((1, 1, 8, 16), np.float32), ("--height", 8, "--mean", "0"),
            "a.npy holds arrays as they are; leave out --height, --mean",
        ),
        (
            "a.npy", np.zeros((1, 1, 8, 16), np.float32), ("--dynamic", "image:4=8..16"),
            "dynamic names axis 4 of image, which has axes 1 to 3 besides the batch",
        ),
        (
            "a.npy", np.zeros((1, 1, 8, 16), np.float32), ("--dynamic", "image:3=8-16"),
            "--dynamic expects INPUT:AXIS=MIN..MAX or INPUT:AXIS=MIN..MAX:MULTIPLE, such as "
            "image:3=32..512 or image:3=32..512:8, got image:3=8-16",
        ),
        (
            "a.npy", np.zeros((1, 1, 8, 16), np.float32), ("--dtype", "fp16"),
            "--dtype fp16 decodes both variants to compare them; give --start",
        ),
    ],
)  # fmt: skip
def test_examples_that_do_not_fit(
    tmp_path: Path, name: str, array: Any, options: tuple[object, ...], message: str
) -> None:
    if array is not None:
        np.save(tmp_path / name, array)
    args = (MODEL, "--example", tmp_path / name, "--max-length", 8, *options)
    assert refusal_of(tmp_path, *args).removeprefix(f"{tmp_path}/") == message


def test_pictures_and_pixel_options() -> None:
    plain = ModelOptions().image_input("image", "RGB", (40, 20))
    assert (plain.mode, plain.height, plain.width) == ("RGB", 20, 40)
    assert (plain.mean, plain.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (plain.min_width, plain.max_width, plain.width_multiple) == (40, 40, 1)
    varying = ModelOptions(dynamic=("image:3=16..64:8",))
    assert varying.axes() == {"image": {3: (16, 64, 8)}}
    padded = varying.image_input("image", "RGB", (40, 20))
    assert (padded.width, padded.min_width, padded.max_width, padded.width_multiple) == (
        None, 16, 64, 8,
    )  # fmt: skip
    explicit = ModelOptions(mode="L", height=10, mean="0.25", std="2").image_input(
        "image", "RGB", (40, 20)
    )
    assert (explicit.mode, explicit.height, explicit.width, explicit.mean, explicit.std) == (
        "L", 10, 20, (0.25,), (2.0,),
    )  # fmt: skip
    for options, message in {
        ModelOptions(mean="x"): "--mean expects numbers separated by commas, got 'x'",
        ModelOptions(std="1,2"): "--std has 2 numbers, mode RGB has 3 channels",
    }.items():
        with pytest.raises(UsageError) as caught:
            options.image_input("image", "RGB", (40, 20))
        assert str(caught.value) == message


def test_a_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def made():\n    return 3\n")
    try:
        assert "mine:made returned int" in refusal_of(tmp_path, "mine:made")
    finally:
        sys.modules.pop("mine", None)


def write_pictures(folder: Path, count: int) -> None:
    """Writes pictures of noise, each wider than the one before."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 255, (8, 16 + 4 * number), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


DESCRIBED = ("--height", 8, "--dynamic", "image:3=16..64", "--max-length", 8, "--end", 2)


def test_samples_are_compared_and_some_are_kept(tmp_path: Path, line: Path) -> None:
    out, samples = tmp_path / "out.bundle", tmp_path / "samples"
    write_pictures(samples, 10)
    np.savez(samples / "99.npz", image=np.ones((1, 1, 8, 20), np.float32))
    args = (MODEL, "--example", line, *DESCRIBED, "--start", 1, "--samples", samples, "-o", out)
    result = export(*args)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{out}: 12 inputs (")
    golden = open_bundle(out).manifest.golden
    names = ["line.png", *(f"{n:02d}.png" for n in (0, 1, 2, 4, 5, 6, 8, 9))]
    assert [sample.file for sample in golden] == [f"golden/{name}" for name in names]
    assert CliRunner().invoke(main, ["verify", str(out)]).exit_code == 0


def test_the_folder_of_killed_samples_is_removed_by_the_next(
    tmp_path: Path, line: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, samples = tmp_path / scratch_name("samples"), tmp_path / "samples"
    dead.mkdir()
    samples.mkdir()
    (samples / "bad.png").write_bytes(b"no picture")
    args = (MODEL, "--example", line, *DESCRIBED, "--start", 1, "--samples", samples)
    assert "samples/bad.png" in refusal_of(tmp_path, *args)
    assert not dead.exists()


def test_samples_that_cannot_be_used_are_named(tmp_path: Path, line: Path) -> None:
    samples = tmp_path / "samples"
    args = (MODEL, "--example", line, *DESCRIBED, "--start", 1, "--samples", samples)
    assert refusal_of(tmp_path, *args) == (
        f"{samples} does not exist; --samples takes a folder of inputs"
    )
    samples.mkdir()
    assert f"{samples} holds no images and no .npz files; " in refusal_of(tmp_path, *args)
    (samples / "bad.png").write_bytes(b"no picture")
    assert "samples/bad.png" in refusal_of(tmp_path, *args)
    (samples / "bad.png").unlink()
    for name, make in (
        ("gone.png", lambda path: path.symlink_to("nothing")),
        ("pipe.npz", os.mkfifo),
    ):
        make(samples / name)
        assert f"samples/{name}" in refusal_of(tmp_path, *args)
        (samples / name).unlink()
    np.savez(samples / "wide.npz", image=np.ones((1, 1, 8, 90), np.float32))
    assert refusal_of(tmp_path, *args) == (
        f"{samples}/wide.npz: input image has 90 on axis 3, the export allows 16 to 64; "
        "export with another range, or leave the file out"
    )
    np.savez(samples / "wide.npz", image=np.ones((1, 1, 8, 20)))
    assert refusal_of(tmp_path, *args) == (
        f"{samples}/wide.npz: input image is float64 of 4 axes, the model takes float32 of 4"
    )


def test_without_start_tokens_a_prompt_is_recorded(tmp_path: Path, line: Path) -> None:
    out = tmp_path / "out.bundle"
    result = export(MODEL, "--example", line, *DESCRIBED, "-o", out)
    assert result.exit_code == 0, result.stderr
    (sample,) = open_bundle(out).manifest.golden
    assert (sample.file, sample.prompt) == ("golden/line.png", (1,))  # 0 pads, 2 ends
    verified = CliRunner().invoke(main, ["verify", str(out)])
    assert verified.exit_code == 0, verified.stderr


def test_a_model_that_ends_at_once_says_so(tmp_path: Path, line: Path) -> None:
    def checked_tokens(*ends: int) -> str:
        tokens = [option for token in ends for option in ("--end", token)]
        out = tmp_path / f"{len(ends)}.bundle"
        args = ("--example", line, "--height", 8, "--max-length", 8, "--start", 1, *tokens)
        result = export(MODEL, *args, "-o", out)
        assert result.exit_code == 0, result.stderr
        return result.stderr.splitlines()[-1]

    assert checked_tokens() == "golden samples for verify: 1, of 7 tokens"
    assert checked_tokens(*range(11)) == (
        "golden samples for verify: 1, of 1 token; the model ends at once on all of them, so "
        "verify checks little"
    )


def test_the_report_says_what_was_compared(tmp_path: Path) -> None:
    parity = Parity(4, 23, 8, 96, 12, ["1x8x16", "1x8x64"], 0, 9.5e-7, 2e-5)
    report = ExportReport(tmp_path, parity, {"trace": 1.0, "check": 2.2})
    assert describe(report) == (
        f"{tmp_path}: 4 inputs (23 tokens) and 8 random prompts (96 tokens) at input sizes "
        "1x8x16; 1x8x64, up to 12 tokens long: all tokens identical to the model, largest "
        "difference of a logit 9.5e-07, 3.2 s"
    )
    tied = replace(parity, sequences=0, prompts=1, ties=2)
    line = describe(replace(report, parity=tied))
    assert line.startswith(f"{tmp_path}: 1 random prompt (96 tokens) at ")
    assert " all tokens identical to the model but 2 at ties, largest difference " in line
