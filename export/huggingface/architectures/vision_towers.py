"""Language models whose own image features cannot be computed for any number of images at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.huggingface.architectures.base import class_names
from hybrid_deploy.export.huggingface.architectures.language_models import (
    FeaturesBeforeText,
    rows_by_sequence,
)


class SelectedLayers(FeaturesBeforeText):
    """LLaVA and VipLLaVA: hidden states of chosen layers, which it returns as a list of images."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"LlavaForConditionalGeneration", "VipLlavaForConditionalGeneration"}
        return not names.isdisjoint(class_names(model))

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images, (batch, features, width of the text)."""
        (pixels,) = inputs
        config: Any = self.model.config
        model: Any = self.model.model
        if "image_sizes" in self.fixed:
            raise UsageError(
                "image_sizes gives each image a size of its own; leave it out, and give images "
                "that are resized to one size"
            )
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        selected = config.vision_feature_layer
        if isinstance(selected, int):
            without_class = getattr(config, "vision_feature_select_strategy", "") == "default"
            rows = hidden[selected][:, 1:] if without_class else hidden[selected]
        else:
            rows = torch.cat([hidden[layer][:, 1:] for layer in selected], -1)
        return rows_by_sequence(model.multi_modal_projector(rows), pixels.shape[0])


class FixedTiles(FeaturesBeforeText):
    """Idefics3 and SmolVLM: an image is several tiles, (batch, tiles, channels, height, width).

    Its own features leave out tiles that are zero everywhere, so their number depends on values.
    Here all tiles are read.
    """

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"}
        return not names.isdisjoint(class_names(model))

    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the template and the number of tiles from an example.

        Raises:
            UsageError: a tile is not whole, or `input_ids` does not fit.
        """
        mask = example.get("pixel_attention_mask")
        tiles = self.example["pixel_values"]
        if tiles.dim() != 5 or (mask is not None and not mask.all()):
            raise UsageError(
                f"pixel_values {tuple(tiles.shape)} must be whole tiles of equal number, (batch, "
                "tiles, channels, height, width), none of them padded"
            )
        super().fix(example)

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of the tiles, (batch, features, width of the text)."""
        (tiles,) = inputs
        model: Any = self.model.model
        hidden = model.vision_model(tiles.flatten(0, 1)).last_hidden_state
        return rows_by_sequence(model.connector(hidden), tiles.shape[0])
