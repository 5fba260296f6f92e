"""Fixtures: tiny models and their bundles, each exported once for all tests."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import ImageInput
from hybrid_deploy.bundle.manifest import (
    DimRange,
    GenerationDefaults,
    Vocabulary,
)
from hybrid_deploy.cache_dir import CACHE_VARIABLE
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from tests.closeness import largest

VOCABULARY = 11


class TinyReader(nn.Module):
    """A convolutional encoder and one decoder layer: the smallest encoder-decoder model."""

    def __init__(self, width: int = 16, heads: int = 2, max_length: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1)
        )
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(max_length, width)
        layer = nn.TransformerDecoderLayer(width, heads, 2 * width, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.head = nn.Linear(width, VOCABULARY)

    def encode(self, image: Tensor) -> Tensor:
        memory: Tensor = self.encoder(image).mean(2).transpose(1, 2)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        rows = self.embedding(tokens) + self.positions(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.decoder(rows, memory, tgt_mask=mask))
        return logits


class TinyWhisper(NamedTuple):
    """A tiny random Whisper.

    Attributes:
        folder: Hugging Face folder of the model.
        model: the model of transformers.
        path: path of its bundle.
    """

    folder: Path
    model: Any
    path: Path


def make_tiny(seed: int = 0) -> TinyReader:
    """Returns a seeded model whose greedy tokens differ between positions and images."""
    torch.manual_seed(seed)
    model = TinyReader()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return model.eval()


def tiny_job(model: TinyReader, seed: int = 0) -> ExportJob:
    """Returns the export job of a tiny model, with a few random images for its checks."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((4, 1, 8, 24)).astype(np.float32)
    page = Image.fromarray(rng.integers(0, 255, (8, 20), dtype=np.uint8))
    return ExportJob(
        model=model,
        example={"image": torch.zeros(1, 1, 8, 16)},
        spec=ModelSpec(
            name="tiny",
            generation=GenerationDefaults((1,), (2,), 0, 8),
            preprocess=ImageInput("image", "L", 8, None, 4, 8, 64, 0, 255, (0.5,), (0.5,)),
            vocabulary=Vocabulary(tuple("_^$abcdefgh"), (0, 1, 2)),
            dynamic={"image": {3: DynamicAxis("width", DimRange(8, 24, 64))}},
        ),
        checks=[{"image": images[:3]}, {"image": images[3:]}],
        golden={"page.png": png_of(page)},
    )


def job() -> ExportJob:
    """Returns the tiny model's export job; the command line names it `tests.conftest:job`."""
    return tiny_job(make_tiny())


def png_of(image: Image.Image) -> bytes:
    """Returns an image as the bytes of a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


@pytest.fixture(scope="session")
def tiny_model() -> TinyReader:
    return make_tiny()


@pytest.fixture(scope="session")
def tiny_logit(tiny_model: TinyReader) -> float:
    """Largest logit of the tiny model; tolerances for its logits are shares of it."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(8, 1, 8, 24, generator=rng)
    tokens = torch.randint(VOCABULARY, (8, 8), generator=rng)
    with torch.no_grad():
        return largest(tiny_model.decode(tokens, tiny_model.encode(image)))


@pytest.fixture(scope="session")
def tiny_export(tiny_model: TinyReader) -> ExportJob:
    return tiny_job(tiny_model)


@pytest.fixture(scope="session")
def tiny_path(tiny_export: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the tiny bundle that all tests share; no test may change it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    run_export(tiny_export, path)
    return path


@pytest.fixture
def tiny_bundle(tiny_path: Path) -> Bundle:
    return open_bundle(tiny_path)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sets a temporary cache folder, so that tests write nothing into the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_path(tiny_path: Path, tmp_path: Path) -> Path:
    """Path of a copy of the tiny bundle; the test may change or damage it."""
    return Path(shutil.copytree(tiny_path, tmp_path / "own.bundle"))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Path of a PNG file that the tiny model accepts as input."""
    path = tmp_path / "page.png"
    pixels = np.random.default_rng(3).integers(0, 255, (16, 40), dtype=np.uint8)
    path.write_bytes(png_of(Image.fromarray(pixels)))
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the float bundle of a tiny untrained reader; it has two start tokens."""
    from hybrid_deploy.export.reference.model import DigitReader
    from hybrid_deploy.export.reference.vocabulary import VOCABULARY

    torch.manual_seed(0)
    model = DigitReader("feature-map", d_model=32, heads=2, layers=1, d_feedforward=64).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # the export optimizes zero biases away
            torch.nn.init.uniform_(parameter, 0.1, 0.9)
    spec = ModelSpec(
        name="tiny",
        generation=GenerationDefaults((1, 3), end_tokens=(), pad_token=0, max_length=8),
        preprocess=ImageInput("image", "L", 32, None, 16, 32, 256, 0, 255, (1.0,), (0.5,)),
        vocabulary=Vocabulary(tuple(VOCABULARY), (0, 1, 2)),
        dynamic={"image": {3: DynamicAxis("width", DimRange(32, 64, 256))}},
    )
    path = tmp_path_factory.mktemp("exported") / "tiny.bundle"
    run_export(ExportJob(model, {"image": torch.randn(1, 1, 32, 64)}, spec), path)
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:
    """A copy of the float bundle; the test may change it."""
    shutil.copytree(exported, tmp_path / "tiny.bundle")
    return open_bundle(tmp_path / "tiny.bundle")


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> TinyWhisper:
    """A tiny random Whisper and its exported bundle; no test may change them."""
    pytest.importorskip("transformers")
    from hybrid_deploy.export.huggingface.folder_job import job_from_folder
    from tests.models.tiny_whisper import save_tiny_whisper

    folder = tmp_path_factory.mktemp("whisper") / "tiny-whisper"
    model = save_tiny_whisper(folder)
    path = folder.with_suffix(".bundle")
    run_export(job_from_folder(folder)[0], path)
    return TinyWhisper(folder, model, path)


@pytest.fixture
def images() -> list[dict[str, NDArray[np.float32]]]:
    """Three encoder inputs of noise, each of another width."""
    rng = np.random.default_rng(0)
    widths = (32, 48, 80)
    return [{"image": -2 * rng.random((1, 1, 32, w), dtype=np.float32)} for w in widths]
