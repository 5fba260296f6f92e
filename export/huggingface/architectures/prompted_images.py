"""Images with a prompt that the encoder reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel, class_names


class ImageInPrompt(HuggingFaceModel):
    """Florence-2: the encoder reads a prompt with placeholder tokens for the image features."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Florence2ForConditionalGeneration" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return ("pixel_values", "input_ids", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states of the prompt, image features included, and its mask."""
        pixels, prompt, mask = inputs
        model: Any = self.model.model
        features: Tensor = model.get_image_features(pixels).pooler_output
        rows = model.get_input_embeddings()(prompt)
        # masked_scatter within each row: the n-th placeholder takes the n-th feature
        placeholders = prompt == self.model.config.image_token_id
        index = (placeholders.cumsum(1) - 1).clamp(0, features.shape[1] - 1)
        picked = features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[2]))
        rows = torch.where(placeholders.unsqueeze(-1), picked, rows)
        hidden: Tensor = model.language_model.encoder(inputs_embeds=rows, attention_mask=mask)[0]
        return hidden, mask
