"""Golden samples that an export keeps by itself, and those that it takes from a folder."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import GoldenSample, Manifest, decode_manifest, encode_manifest
from hybrid_deploy.calibration.samples.samples import golden_samples
from hybrid_deploy.errors import CalibrationError, InputError, UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import load_session
from tests.conftest import TinyReader

LONG = 80


@pytest.fixture(scope="module")
def long_model() -> TinyReader:
    torch.manual_seed(1)
    return TinyReader(max_length=LONG).eval()


def own_tokens(model: TinyReader, image: Tensor, prompt: list[int], count: int) -> tuple[int, ...]:
    """Returns the tokens that the module itself continues a prompt with."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model.decode(torch.tensor([tokens]), model.encode(image))
            tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_the_example_is_kept_with_the_tokens_of_the_model(
    long_model: TinyReader, tmp_path: Path
) -> None:
    """An example of two rows outside of the range, no start token, and no end of the sequence."""
    images = torch.randn(2, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "out.bundle"
    export_model(
        long_model, images, out, max_length=LONG, end_tokens=5,
        dynamic={"image": {3: ("width", 24, 64)}}, checks=[],
    )  # fmt: skip
    bundle = open_bundle(out)
    (sample,) = bundle.manifest.golden
    assert (sample.prompt, sample.max_new_tokens, sample.is_example) == ((1,), 64, True)
    with np.load(out / sample.file) as file:
        image = file["image"]
    assert image.shape == (1, 1, 8, 24)
    expected = own_tokens(long_model, torch.from_numpy(image), [1], 64)
    assert sample.tokens == expected[: len(sample.tokens)]
    assert len(sample.tokens) == 64 or sample.tokens[-1] == 5
    (result,), _ = load_session(out).run_files(
        [out / sample.file], prompt=(1,), options=GenerateOptions(max_new_tokens=64)
    )
    assert result.tokens == sample.tokens


def test_a_kept_example_is_no_calibration_data(own_path: Path) -> None:
    bundle = open_bundle(own_path)
    sample = GoldenSample("golden/example.npz", (1,), "", is_example=True)
    manifest = msgspec.structs.replace(bundle.manifest, golden=(sample,))
    with pytest.raises(CalibrationError, match="has no golden samples; give --samples FOLDER"):
        golden_samples(replace(bundle, manifest=manifest))


def test_a_golden_file_of_two_inputs_is_refused(long_model: TinyReader, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^golden sample two\.npy holds 2 inputs as image, each file must hold"
    ):
        export_model(
            long_model, torch.zeros(1, 1, 8, 16), tmp_path / "o", max_length=8, start_tokens=1,
            golden={"two.npy": npy(np.zeros((2, 1, 8, 16), np.float32))},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_golden_file_that_the_model_itself_cannot_read_is_refused(
    long_model: TinyReader, tmp_path: Path
) -> None:
    message = r"^the model returns logits that are not finite for loud\.npy, sequence 0 at step 0;"
    with pytest.raises(UnsupportedModelError, match=message):
        export_model(
            long_model, torch.zeros(1, 1, 8, 16), tmp_path / "o", max_length=8, start_tokens=1,
            golden={"loud.npy": npy(np.full((1, 1, 8, 16), 3e38, np.float32))},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def npy(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_manifests_without_the_new_fields_keep_their_bytes(tiny_path: Path) -> None:
    manifest: Manifest = open_bundle(tiny_path).manifest
    data = encode_manifest(manifest)
    for field in (b"max_new_tokens", b"is_example", b'"prompt"'):
        assert field not in data
    assert decode_manifest(data, "m") == manifest
