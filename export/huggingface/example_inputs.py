"""Makes example inputs of a Hugging Face encoder, with the sizes in its config."""

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
    """Returns random inputs with a batch size of one, by name.

    Args:
        config: config of the model.
        names: names of the encoder's inputs; an `attention_mask` follows the input it belongs to.
    """
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    for name in names:
        if name.endswith("attention_mask"):
            masked = list(inputs.values())[-1]
            inputs[name] = torch.ones(masked.shape[:2], dtype=torch.int64)
        else:
            inputs[name] = _MAKERS[name](config, generator)
    return inputs


def supported_inputs() -> tuple[str, ...]:
    """Returns the names of the inputs that `example_inputs` can make."""
    return (*_MAKERS, "attention_mask", "qformer_attention_mask")


def _image(config: Any, generator: torch.Generator) -> Tensor:
    """Returns pixel_values, (1, channels, height, width) float32."""
    encoder = _part(config, "encoder", "vision_config")
    size = _first(encoder, "image_size", default=None)
    size = _side(encoder) if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    channels = _first(encoder, "num_channels", "in_channels", default=3)
    return torch.randn(1, channels, height, width, generator=generator)


def _spectrogram(config: Any, generator: torch.Generator) -> Tensor:
    """Returns input_features float32: Whisper's (1, bins, frames), else (1, frames, bins)."""
    width = _first(_part(config, "encoder"), "feature_projection_input_dim", default=None)
    encoder = getattr(config, "encoder_config", None)
    width = getattr(encoder, "num_mel_bins", None) if width is None else width
    if width is not None:
        return torch.randn(1, _AUDIO_FRAMES, width, generator=generator)
    config = _part(config, "audio_config")
    positions = config.max_source_positions
    bins = getattr(config, "num_mel_bins", None)
    if bins is not None:
        return torch.randn(1, bins, 2 * positions, generator=generator)
    width = config.input_feat_per_channel * config.input_channels
    return torch.randn(1, min(positions, _AUDIO_FRAMES), width, generator=generator)


def _audio(config: Any, generator: torch.Generator) -> Tensor:
    """Returns input_values, (1, samples) float32."""
    return torch.randn(1, _AUDIO_SAMPLES, generator=generator)


def _prompt(config: Any, generator: torch.Generator) -> Tensor:
    """Returns input_ids, (1, length) int64; a model with images needs placeholders in front."""
    text = _part(config, "text_config", "encoder")
    ids = torch.randint(2, text.vocab_size, (1, _PROMPT_TOKENS), generator=generator)
    image_token = getattr(config, "image_token_id", None)
    if image_token is None:
        return ids
    ids[ids == image_token] = 0
    count = _placeholder_count(config)
    return torch.cat([torch.full((1, count), image_token), ids], 1)


def _placeholder_count(config: Any) -> int:
    """Returns the number of placeholders: the Q-Former's queries, or the patches of an image."""
    queries, vision = getattr(config, "num_query_tokens", None), config.vision_config
    if queries is not None:
        return int(queries)
    if config.model_type == "paligemma":
        return int((vision.image_size // vision.patch_size) ** 2)
    return int(1 + (_side(vision) // math.prod(vision.patch_stride)) ** 2)


def _instruction(config: Any, generator: torch.Generator) -> Tensor:
    """Returns qformer_input_ids, (1, length) int64."""
    vocabulary = config.qformer_config.vocab_size
    return torch.randint(2, vocabulary, (1, _PROMPT_TOKENS), generator=generator)


def _patches(config: Any, generator: torch.Generator) -> Tensor:
    """Returns flattened_patches, (1, patches, 2 + values) float32: row, column, then pixels."""
    vision = config.vision_config
    count = min(_PATCHES, vision.seq_len)
    columns = int(count**0.5)
    indices = torch.arange(columns * columns)
    values = torch.randn(1, len(indices), vision.patch_embed_hidden_size, generator=generator)
    row_numbers, column_numbers = indices // columns + 1, indices % columns + 1
    return torch.cat([torch.stack([row_numbers, column_numbers], -1)[None].float(), values], -1)


def _side(vision: Any) -> int:
    """Returns the side of Florence-2's images in pixels, limited by its position table."""
    return int(min(_FLORENCE_SIDE, vision.max_position_embeddings * math.prod(vision.patch_stride)))


_MAKERS: dict[str, Callable[[Any, torch.Generator], Tensor]] = {
    "flattened_patches": _patches,
    "input_features": _spectrogram,
    "input_ids": _prompt,
    "input_values": _audio,
    "pixel_values": _image,
    "qformer_input_ids": _instruction,
}


def _part(config: Any, *names: str) -> Any:
    """Returns the first config of a part with one of these names; else the whole config."""
    return _first(config, *names, default=config)


def _first(config: Any, *names: str, default: Any) -> Any:
    """Returns the first of these attributes that is not None."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), default)
