"""Example inputs of a Hugging Face encoder, of the sizes that its config tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_PROMPT_TOKENS = 16
_AUDIO_SAMPLES = 16000
_AUDIO_FRAMES = 400
_PATCHES = 2048
_FLORENCE_SIDE = 768


def example_inputs(config: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Returns random inputs of one sample.

    Args:
        config: the model's.
        names: the inputs that are wanted.
    """
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for name in names:
        if name == "attention_mask":
            last = list(made.values())[-1]
            made[name] = torch.ones(last.shape[:2], dtype=torch.int64)
        else:
            made[name] = _MAKERS[name](config, generator)
    return made


def known_inputs() -> tuple[str, ...]:
    """Names the inputs that an example can be made of."""
    return (*_MAKERS, "attention_mask")


def _image(config: Any, generator: torch.Generator) -> Tensor:
    """Makes pixel_values, (1, channels, height, width) float32."""
    encoder = _part(config, "encoder", "vision_config")
    size = _first(encoder, "image_size", default=None)
    size = _side(encoder) if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    channels = _first(encoder, "num_channels", "in_channels", default=3)
    return torch.randn(1, channels, height, width, generator=generator)


def _spectrogram(config: Any, generator: torch.Generator) -> Tensor:
    """Makes input_features: Whisper's (1, bins, frames), or (1, frames, bins) float32."""
    positions = config.max_source_positions
    bins = getattr(config, "num_mel_bins", None)
    if bins is not None:
        return torch.randn(1, bins, 2 * positions, generator=generator)
    width = config.input_feat_per_channel * config.input_channels
    return torch.randn(1, min(positions, _AUDIO_FRAMES), width, generator=generator)


def _audio(config: Any, generator: torch.Generator) -> Tensor:
    """Makes input_values, (1, samples) float32."""
    return torch.randn(1, _AUDIO_SAMPLES, generator=generator)


def _prompt(config: Any, generator: torch.Generator) -> Tensor:
    """Makes input_ids, (1, length) int64, with placeholders for an image where there is one."""
    text = _part(config, "text_config", "encoder")
    ids = torch.randint(2, text.vocab_size, (1, _PROMPT_TOKENS), generator=generator)
    image_token = getattr(config, "image_token_id", None)
    if image_token is None:
        return ids
    ids[ids == image_token] = 0
    vision = config.vision_config
    count = 1 + (_side(vision) // math.prod(vision.patch_stride)) ** 2
    return torch.cat([torch.full((1, count), image_token), ids], 1)


def _patches(config: Any, generator: torch.Generator) -> Tensor:
    """Makes flattened_patches, (1, patches, 2 + values) float32: row, column, then pixels."""
    vision = config.vision_config
    count = min(_PATCHES, vision.seq_len)
    columns = int(count**0.5)
    places = torch.arange(columns * columns)
    values = torch.randn(1, len(places), vision.patch_embed_hidden_size, generator=generator)
    rows, across = places // columns + 1, places % columns + 1
    return torch.cat([torch.stack([rows, across], -1)[None].float(), values], -1)


def _side(vision: Any) -> int:
    """Returns the side of Florence-2's images: the processor's, if there are positions for it."""
    return int(min(_FLORENCE_SIDE, vision.max_position_embeddings * math.prod(vision.patch_stride)))


_MAKERS: dict[str, Callable[[Any, torch.Generator], Tensor]] = {
    "flattened_patches": _patches,
    "input_features": _spectrogram,
    "input_ids": _prompt,
    "input_values": _audio,
    "pixel_values": _image,
}


def _part(config: Any, *names: str) -> Any:
    """Returns the config of a part of the model; the whole config if it has no parts."""
    return _first(config, *names, default=config)


def _first(config: Any, *names: str, default: Any) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), default)
