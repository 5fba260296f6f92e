"""Language models whose image features keep the places of a grid: Qwen2-VL and Qwen2.5-VL.

Their own vision tower packs the patches of all images on one axis and splits it by values. Here
every image has the grid of the example, so patches keep a batch axis, and all places are constants.

    prefix      <s>  <image> x 4, a grid of 2 x 2    text, behind the largest place of the grid
    time         0   1  1  1  1                      3  4  5 ...
    row          0   1  1  2  2                      3  4  5 ...
    column       0   1  2  1  2                      3  4  5 ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.huggingface.architectures.base import class_names
from hybrid_deploy.export.huggingface.architectures.language_models import FeaturesBeforeText


class PlacedFeatures(FeaturesBeforeText):
    """Qwen2-VL and Qwen2.5-VL: text positions continue after the largest place of the grid.

    `pixel_values` are images (batch, channels, height, width), or the rows of the model's processor
    with a batch axis, (batch, patches, values), and then the example needs `image_grid_thw` too.
    """

    prefix_positions: Tensor

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"}
        return not names.isdisjoint(class_names(model))

    @torch.no_grad()
    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the template and the grid of the image from an example.

        Raises:
            UsageError: the grid is missing or does not fit, or `input_ids` does not.
        """
        grid = self._grid(self.example["pixel_values"], example.get("image_grid_thw"))
        self._place_patches(grid)
        super().fix({**example, "image_grid_thw": grid})
        kinds = self.is_feature[:, 0].long()[None]
        ids = torch.tensor([self.prefix_tokens])
        model: Any = self.model.model
        positions = model.get_rope_index(ids, kinds, image_grid_thw=grid)[0][:, 0]
        self.register_buffer("prefix_positions", positions, persistent=False)
        self.first_position = int(positions.max()) + 1

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images, (batch, features, width of the text)."""
        batch = inputs[0].shape[0]
        tower: Any = self.model.model.visual
        patches = self.patches_of(inputs[0])
        rows = tower.patch_embed(patches.flatten(0, 1)).view(batch, patches.shape[1], -1)
        rows = rows[:, self.order]
        for index, block in enumerate(tower.blocks):
            is_whole = index in getattr(tower, "fullatt_block_indexes", (index,))
            mask = self.same_image if is_whole else self.same_window
            rows = rows + self._attend(block.attn, block.norm1(rows), mask)
            rows = rows + block.mlp(block.norm2(rows))
        merged = tower.merger(rows.flatten(0, 1))
        features: Tensor = merged.view(batch, -1, merged.shape[-1])[:, self.merged_order]
        return features

    def patches_of(self, pixels: Tensor) -> Tensor:
        """Returns images as patches (batch, patches, values) in the order of the processor."""
        if pixels.dim() == 3:
            return pixels
        vision: Any = self.model.config.vision_config
        side, merged = vision.patch_size, vision.spatial_merge_size
        channels, height, width = pixels.shape[1:]
        down, across = height // side // merged, width // side // merged
        split = pixels.reshape(-1, channels, down, merged, side, across, merged, side)
        # to (batch, block row, block column, row, column, channels, height, width)
        patches = split.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4).unsqueeze(3)
        repeated = patches.expand(-1, -1, -1, vision.temporal_patch_size, -1, -1)
        return repeated.flatten(2)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens of the text, (batch, length, vocabulary)."""
        (prefix,) = memory
        rows = torch.cat([prefix, self.embed(tokens)], 1)
        steps = self.first_position + torch.arange(tokens.shape[1])
        positions = torch.cat([self.prefix_positions, steps.expand(3, -1)], 1)[:, None]
        outputs: Any = self.model(inputs_embeds=rows, position_ids=positions, use_cache=False)
        logits: Tensor = outputs.logits[:, prefix.shape[1] :]
        return logits

    def own_inputs(self, ids: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the inputs that the model itself takes."""
        kinds = F.pad(self.is_feature[:, 0].long(), (0, ids.shape[1] - len(self.is_feature)))
        return {
            "input_ids": ids,
            "pixel_values": self.patches_of(inputs["pixel_values"]).flatten(0, 1),
            "image_grid_thw": self.fixed["image_grid_thw"].expand(len(ids), -1),
            "mm_token_type_ids": kinds.expand_as(ids),
        }

    def _grid(self, pixels: Tensor, given: Tensor | None) -> Tensor:
        """Returns the time, rows and columns of the patches of each image, (1, 3) int64."""
        vision: Any = self.model.config.vision_config
        if pixels.dim() == 4:
            rows, columns = (size // vision.patch_size for size in pixels.shape[2:])
            unit = vision.patch_size * vision.spatial_merge_size
            if any(size % unit for size in pixels.shape[2:]):
                raise UsageError(
                    f"pixel_values are images of {tuple(pixels.shape[2:])} pixels; give a height "
                    f"and a width that are multiples of {unit}"
                )
            return torch.tensor([[1, rows, columns]])
        if pixels.dim() != 3 or given is None or (given != given[:1]).any():
            raise UsageError(
                "pixel_values must be images (batch, channels, height, width), or patches (batch, "
                "patches, values) with one image_grid_thw for all of them"
            )
        if int(given[0].prod()) != pixels.shape[1]:
            raise UsageError(
                f"image_grid_thw {given[0].tolist()} has {int(given[0].prod())} patches, "
                f"pixel_values have {pixels.shape[1]}"
            )
        return given[:1]

    def _place_patches(self, grid: Tensor) -> None:
        """Computes the order, the rotation and the neighbours of the patches from their grid."""
        # the first releases of transformers 5 have no such module
        from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

        tower: Any = self.model.model.visual
        merged = tower.spatial_merge_size
        frames = torch.arange(int(grid[0, 0])).repeat_interleave(int(grid[0, 1] * grid[0, 2]))
        self.order = torch.arange(len(frames))
        self.merged_order = torch.arange(len(frames) // merged**2)
        self.same_image = _same(frames)
        self.same_window = self.same_image
        if hasattr(tower, "window_size"):
            index, ends = get_vision_window_index(grid, merged, tower.window_size, tower.patch_size)
            self.order = self.order.view(-1, merged**2)[index].flatten()
            self.merged_order = index.argsort()
            window = torch.arange(len(ends) - 1).repeat_interleave(ends.diff())
            self.same_window = _same(window)
            self.same_image = _same(frames[self.order])
        places = get_vision_position_ids(grid, merged)
        cos, sin = tower.rotary_pos_emb(torch.zeros(0), places)
        self.cos, self.sin = cos[self.order][:, None], sin[self.order][:, None]

    def _attend(self, attention: Any, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the self-attention of patches (batch, patches, width)."""
        batch, count = rows.shape[:2]
        query, key, value = (
            attention.qkv(rows).view(batch, count, 3, attention.num_heads, -1).unbind(2)
        )
        query, key = (part * self.cos + _turned(part) * self.sin for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
        return attended


def _same(groups: Tensor) -> Tensor | None:
    """Returns which patches are in one group, (patches, patches); None if all are."""
    same = groups[:, None] == groups
    return None if bool(same.all()) else same


def _turned(rows: Tensor) -> Tensor:
    """Returns rows with their halves exchanged, and the new first half negated."""
    first, second = rows.chunk(2, -1)
    return torch.cat([-second, first], -1)
