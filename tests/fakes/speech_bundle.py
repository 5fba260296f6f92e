"""A tiny bundle that takes sound and begins its texts as Whisper does."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import tokenizers
import torch
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle
from hybrid_deploy.bundle.input_specs import AudioInput, Waveform
from hybrid_deploy.bundle.manifest import GenerationDefaults, Tokenizer
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.exporter import run_export
from tests.conftest import TinyReader

SAMPLES = 128
WORDS = [
    "<pad>",
    "START",
    "<|endoftext|>",
    "Grey",
    "cats",
    "sat,",
    "twenty",
    "one",
    "o'clock",
    "Uh",
]
WHISPER_START = "<|startoftranscript|>"
_FILE = "tokenizer.json"


class TinyListener(TinyReader):
    """Takes a waveform for the rows of a picture."""

    def encode(self, input_values: Tensor) -> Tensor:
        """Returns memory (batch, columns, width) of a waveform (batch, SAMPLES)."""
        return super().encode(input_values.reshape(-1, 1, 8, SAMPLES // 8))


def export_listener(path: Path) -> Path:
    """Exports a seeded listener as an English-only Whisper would be."""
    torch.manual_seed(5)
    model = TinyListener().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    job = ExportJob(
        model=model,
        example={"input_values": torch.randn(1, SAMPLES)},
        spec=ModelSpec(
            name="listener",
            generation=GenerationDefaults((1,), (2,), 0, 8, suppressed=(0, 1, 10)),
            preprocess=AudioInput("input_values", 16000, Waveform(normalize=True)),
            vocabulary=Tokenizer(_FILE, skip=(0, 1, 2)),
            files={_FILE: tokenizer_of(WHISPER_START)},
        ),
    )
    run_export(job, path)
    return path


def tokenizer_of(*start: str) -> bytes:
    """Returns a tokenizer.json whose tokens from id 1 on are these special ones."""
    words = [*WORDS, "…"]
    words[1 : 1 + len(start)] = start
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>")
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    built.add_special_tokens(list(start))
    return built.to_str().encode()


def with_start(bundle: Path, *start: str) -> Bundle:
    """Returns the bundle with other start tokens, as a multilingual Whisper has; changes it."""
    manifest = open_bundle(bundle).manifest
    (bundle / _FILE).write_bytes(tokenizer_of(*start))
    generation = msgspec.structs.replace(
        manifest.generation, start_tokens=tuple(range(1, 1 + len(start)))
    )
    seal_bundle(bundle, msgspec.structs.replace(manifest, generation=generation))
    return open_bundle(bundle)


def write_sounds(folder: Path, labels: Mapping[str, str]) -> Path:
    """Writes a WAV file of noise for each name, and a labels.csv with their texts."""
    folder.mkdir()
    rows = ["file,text"]
    for seed, (name, text) in enumerate(labels.items()):
        samples = np.random.default_rng(seed).normal(0, 3000, SAMPLES).astype("<i2")
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        quoted = text.replace('"', '""')
        rows.append(f'{name},"{quoted}"')
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
