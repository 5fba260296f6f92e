"""Images: encoders whose decoder or patches have an interface of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel, class_names


class PlacedPatches(HuggingFaceModel):
    """Pix2Struct: each patch begins with its row and column numbers, which index tables."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Pix2StructForConditionalGeneration" in class_names(model)

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states and the mask; limits row and column to the tables."""
        patches, mask = inputs
        row_and_column = patches[..., :2].clamp(0, self.model.config.vision_config.seq_len - 1)
        return super().encode(torch.cat([row_and_column, patches[..., 2:]], -1), mask)


class CaptionFromImage(HuggingFaceModel):
    """BLIP captioning: the text decoder is called directly with the image's hidden states."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "BlipForConditionalGeneration" in class_names(model)

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the vision model."""
        encoder: nn.Module = model.vision_model
        return encoder

    def logits_of(self, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of a model's own forward, (batch, length, vocabulary)."""
        logits: Tensor = model(**inputs, input_ids=tokens).logits
        return logits

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        outputs = model.text_decoder(tokens, encoder_hidden_states=memory[0], use_cache=False)
        logits: Tensor = outputs.logits
        return logits


class FormulaFromImage(HuggingFaceModel):
    """PP-FormulaNet: the decoder reads the encoder's second output."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "PPFormulaNetForConditionalGeneration" in class_names(model)

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the projected image, (batch, memory, width)."""
        projected: Tensor = self.encoder_of(self.model)(*inputs).pooler_output
        return (projected,)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        rows = model.model.decoder(tokens, encoder_hidden_states=memory[0], use_cache=False)[0]
        logits: Tensor = model.lm_head(rows)
        return logits
