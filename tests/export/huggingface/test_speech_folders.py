"""Tests folders of speech models: one command exports them, and a sound file gives their tokens."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf

from hybrid_deploy.cli import main
from hybrid_deploy.errors import UnsupportedModelError
from hybrid_deploy.export.huggingface.folder_job import job_from_folder
from hybrid_deploy.runtime.session.session import load_session
from tests.models.zoo.transformers.models import MODELS, model_and_adapter

LENGTH = 10
_RATE = 16000


def _waveform(**settings: Any) -> Any:
    return hf.Wav2Vec2FeatureExtractor(return_attention_mask=True, **settings)


EXTRACTORS: dict[str, Callable[[], Any]] = {
    "moonshine-streaming": lambda: _waveform(do_normalize=False),
    "speecht5": lambda: hf.SpeechT5FeatureExtractor(do_normalize=True),
}
UNKNOWN = {
    "canary": ("ParakeetFeatureExtractor", 16),
    "cohere-asr": ("CohereAsrFeatureExtractor", 16),
    "seamless-v2-speech": ("SeamlessM4TFeatureExtractor", 8),
}


def saved(model: Any, extractor: Any, folder: Path) -> Path:
    """Writes a model and its feature extractor, and returns the folder."""
    model.generation_config.update(
        max_length=LENGTH, decoder_start_token_id=1, eos_token_id=2, pad_token_id=0
    )
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "speecht5",
        pytest.param("moonshine-streaming", marks=pytest.mark.slow),
    ],
)
def test_a_sound_file_gives_the_tokens_of_generate(name: str, tmp_path: Path) -> None:
    model, _ = model_and_adapter(name)
    extractor = EXTRACTORS[name]()
    folder, out = saved(model, extractor, tmp_path / "model"), tmp_path / "out.bundle"
    result = CliRunner().invoke(main, ["export", str(folder), "-o", str(out)])
    assert result.exit_code == 0, result.output
    generator = np.random.default_rng(0)
    for samples in (4000, 5230):  # the second is no whole number of Moonshine's frames
        sound = (generator.standard_normal(samples) * 8000).clip(-32768, 32767).astype("<i2")
        path = tmp_path / f"{samples}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, _RATE, samples, "NONE", ""))
            file.writeframes(sound.tobytes())
        inputs = extractor(
            sound.astype(np.float32) / 32768,
            sampling_rate=_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            padding=True,
            pad_to_multiple_of=80 if name == "moonshine-streaming" else None,
        )
        expected = model.generate(**inputs, num_beams=1, do_sample=False)[0].tolist()
        (line,), _ = load_session(out).run_files([path])
        assert [1, *line.tokens] == expected


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_feature_extractor_is_named(name: str, tmp_path: Path) -> None:
    kind, bins = UNKNOWN[name]
    extractor = getattr(hf, kind)(feature_size=bins, num_mel_bins=bins)
    folder = saved(MODELS[name].make(), extractor, tmp_path / "model")
    with pytest.raises(UnsupportedModelError) as caught:
        job_from_folder(folder)
    assert f"has a processor {kind}; known are ViT" in str(caught.value)
    assert str(caught.value).endswith("steps with an AudioInput, or give arrays with an ArrayInput")
