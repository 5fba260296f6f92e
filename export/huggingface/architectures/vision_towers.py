"""Language models whose own image features cannot be computed for any number of images at once."""

from __future__ import annotations

import inspect
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
        if "image_sizes" in self.fixed:
            raise UsageError(
                "image_sizes gives each image a size of its own; leave it out, and give images "
                "that are resized to one size"
            )
        return self.projected(inputs[0])

    def projected(self, pixels: Tensor) -> Tensor:
        """Returns the features of pictures, (pictures, features, width of the text)."""
        model: Any = self.model.model
        config: Any = model.config
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        is_several = hasattr(config, "vision_feature_layers")
        layers = config.vision_feature_layers if is_several else config.vision_feature_layer
        rows = torch.cat([hidden[i] for i in ([layers] if isinstance(layers, int) else layers)], -1)
        if getattr(config, "vision_feature_select_strategy", "default") == "default":
            rows = rows[:, 1:]  # without the row of the whole picture
        features: Tensor = model.multi_modal_projector(rows)
        return features


class PackedTiles(SelectedLayers):
    """LLaVA-NeXT and LLaVA-OneVision: a small picture of the whole image, then a grid of tiles.

    The features of the tiles are put in the order of the whole image, without those of its padding,
    and a learned row ends each line. With one size for all images this order is constant.
    """

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"LlavaNextForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"}
        return not names.isdisjoint(class_names(model))

    @torch.no_grad()
    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the template and the order of the tiles' features from an example.

        Raises:
            UsageError: the size of the image is missing or not the same for all, the features are
                averaged, or `input_ids` does not fit.
        """
        sizes, tiles = example.get("image_sizes"), self.example["pixel_values"]
        if sizes is None or tiles.dim() != 5 or bool((sizes != sizes[:1]).any()):
            raise UsageError(
                "pixel_values must be tiles (batch, tiles, channels, height, width), with one "
                "image_sizes (1, 2) for all: height and width of the image before it was cut"
            )
        per_tile = self.projected(tiles[0, :1]).shape[1]
        self.order = self._order(tiles.shape[1], per_tile, sizes[:1])
        super().fix(example)

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images, (batch, features, width of the text)."""
        (tiles,) = inputs
        model: Any = self.model.model
        rows = rows_by_sequence(self.projected(tiles.flatten(0, 1)), tiles.shape[0])
        line_end = model.image_newline.expand(tiles.shape[0], 1, -1)
        return torch.cat([rows, line_end], 1)[:, self.order]

    def _order(self, tiles: int, per_tile: int, sizes: Tensor) -> Tensor:
        """Returns the index of each packed feature; the number of all features for a line's end.

        The model packs numbers in place of features: a number and its square, which disagree
        after an average.
        """
        model: Any = self.model.model
        config, count = model.config, tiles * per_tile
        number = torch.arange(count + 1, dtype=torch.float64)
        marks = torch.stack([number, number**2], 1)
        options = {
            name: getattr(config, name)
            for name in ("vision_feature_select_strategy", "vision_aspect_ratio")
            if name in inspect.signature(model.pack_image_features).parameters
        }
        pictures = [marks[:count].view(tiles, per_tile, 2)]
        packed = model.pack_image_features(pictures, sizes, image_newline=marks[count], **options)
        order, squares = packed[0][0].unbind(1)
        if bool((order**2 != squares).any()):
            raise UsageError(
                f"{tiles - 1} tiles are so many that the model averages their features; give an "
                "image of fewer tiles"
            )
        index: Tensor = order.long()
        return index


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
