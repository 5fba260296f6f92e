"""Inputs of different sizes in one batch: with a mask each has the result that it has alone."""

from __future__ import annotations

import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import AudioInput, FilterBank, ImageInput, Preprocess
from hybrid_deploy.bundle.manifest import GenerationDefaults, TensorSpec
from hybrid_deploy.errors import InputError
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.runtime.session.session import Session

VOCABULARY, WIDTH, LENGTH, HEIGHT = 11, 16, 8, 8


class Masked(nn.Module):
    """A model whose memory is columns of pictures or frames of sound; `seen` masks the padding."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = nn.Linear(columns, WIDTH)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def encode(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        assert seen.dtype == torch.bool, "the mask has the type that the model takes"
        rows = features.squeeze(1).transpose(1, 2) if features.dim() == 4 else features
        return self.columns(rows), ~seen

    def decode(self, tokens: Tensor, memory: Tensor, unseen: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        rows = self.decoder(
            self.embedding(tokens), memory, tgt_mask=mask, memory_key_padding_mask=unseen
        )
        logits: Tensor = self.head(rows)
        return logits


def session_of(tiny_path: Path, preprocess: Preprocess, columns: int) -> Session:
    """Returns a session whose backend runs the PyTorch model itself, without graphs."""
    torch.manual_seed(0)
    model = Masked(columns).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    bundle = open_bundle(tiny_path)
    features = TensorSpec("features", "float", ("batch", "rows", columns))
    seen = TensorSpec("seen", "bool", ("batch", "rows"))
    variant = bundle.variant("fp32")
    encoder = msgspec.structs.replace(variant.encoder, inputs=(features, seen))
    manifest = msgspec.structs.replace(
        bundle.manifest,
        capacity=LENGTH,
        preprocess=preprocess,
        generation=GenerationDefaults((1,), (2,), 0, LENGTH),
        variants={"fp32": msgspec.structs.replace(variant, encoder=encoder)},
    )
    return Session(Bundle(bundle.folder, manifest), "fp32", FullRerun(model, LENGTH))


def check_batch_equals_single(session: Session, files: list[Path]) -> None:
    together = session.run_files(files)[0]
    alone = [session.run_files([file])[0][0] for file in files]
    assert together == alone
    assert len({result.tokens for result in together}) > 1


def test_pictures_of_different_widths(tiny_path: Path, tmp_path: Path) -> None:
    pictures = ImageInput(
        "features", "L", HEIGHT, None, 4, 4, 64, 0, 255, (0.5,), (0.5,), mask="seen"
    )
    rng, files = np.random.default_rng(1), []
    for width in (5, 30, 12, 41):
        files.append(tmp_path / f"{width}.png")
        Image.fromarray(rng.integers(0, 255, (HEIGHT, width), np.uint8)).save(files[-1])
    check_batch_equals_single(session_of(tiny_path, pictures, HEIGHT), files)
    # without a mask the model would see the padding
    batch = session_of(tiny_path, pictures, HEIGHT).prepare(files)
    assert batch["features"].shape == (4, 1, HEIGHT, 44)
    assert batch["seen"].dtype == np.bool_ and batch["seen"].sum(1).tolist() == [5, 30, 12, 41]


def test_recordings_of_different_lengths(tiny_path: Path, tmp_path: Path) -> None:
    spoken = AudioInput(
        "features", 16000, FilterBank(HEIGHT, center=False, scale=False), mask="seen"
    )
    rng, files = np.random.default_rng(2), []
    for hundredths, hertz in ((10, 300), (31, 1200), (18, 4000)):
        files.append(tmp_path / f"{hundredths}.wav")
        time = np.arange(160 * hundredths)
        tone = np.sin(2 * np.pi * hertz * time * time / 16000 / len(time))
        samples = (6000 * tone + 50 * rng.standard_normal(len(time))).astype("<i2")
        with wave.open(str(files[-1]), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    check_batch_equals_single(session_of(tiny_path, spoken, HEIGHT), files)


def test_a_silent_recording(tiny_path: Path, tmp_path: Path) -> None:
    spoken = AudioInput("features", 16000, FilterBank(HEIGHT), mask="seen")
    path = tmp_path / "silent.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    with pytest.raises(InputError, match=r"silent\.wav is silent: all its samples are the same"):
        session_of(tiny_path, spoken, HEIGHT).run_files([path])
