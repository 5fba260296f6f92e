"""A model with the shape of Whisper tiny and random weights, to measure sizes and speeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedModel

from hybrid_deploy.export.exporter import export_model

BINS, FRAMES, TOKENS = 80, 3000, 51865
_START, _LENGTH = 50258, 64
_SAMPLES = 2


def whisper_shape() -> PreTrainedModel:
    """Returns the model: 4 + 4 layers of width 384 with random weights, biases and gains."""
    torch.manual_seed(0)
    config = hf.WhisperConfig(
        vocab_size=TOKENS,
        num_mel_bins=BINS,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        d_model=384,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = hf.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a graph optimizer would remove zeros
            if name.endswith(".bias"):
                parameter.normal_(0, 0.02)
            elif "layer_norm.weight" in name:
                parameter.normal_(1, 0.1)
    return model


def write(out: Path, samples: Path) -> None:
    """Exports the model, and writes two samples of noise.

    Args:
        out: folder of the bundle; an existing one is replaced.
        samples: folder of the samples; it is created if missing.
    """
    features = torch.randn(1, BINS, FRAMES)
    export_model(
        whisper_shape(), features, out, max_length=_LENGTH, start_tokens=_START, force=True
    )
    samples.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(_SAMPLES):
        noise = rng.normal(size=(1, BINS, FRAMES)).astype(np.float32)
        np.savez(samples / f"{number}.npz", input_features=noise)
