"""Hugging Face encoder-decoder models as `encode(*inputs) -> memory` and `decode(tokens, *memory)`.

`HuggingFaceModel` adapts all models with the usual interface of transformers, where `forward` takes
`encoder_outputs` and `decoder_input_ids`. Each model with another interface has a derived class.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

_INPUTS_WITH_MASK = ("flattened_patches", "input_ids", "input_values")


class HuggingFaceModel(nn.Module):
    """A Hugging Face encoder-decoder model with the interface of the exporter.

    Args:
        model: copy for this adapter that `incremental_copy` made, so its decoder uses no cache.

    Attributes:
        input_names: names of the encoder's inputs, the same as in `forward` and in the processor.
            An `attention_mask` (1 for real data, 0 for padding) is also the last memory tensor.
        example: example inputs of the encoder by name, batch first; `adapt` sets them.
    """

    input_names: tuple[str, ...]

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.input_names = self.inputs_of(model)
        self.example: dict[str, Tensor] = {}

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = set(inspect.signature(model.forward).parameters)
        required = {"encoder_outputs", "decoder_input_ids", model.main_input_name}
        return required <= names and type(model).__name__.endswith(_WITH_LOGITS)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        name = str(model.main_input_name)
        return (name, "attention_mask") if name in _INPUTS_WITH_MASK else (name,)

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the encoder, whose modules stay as they are."""
        encoder: nn.Module = model.get_encoder()
        return encoder

    @classmethod
    def logits_of(cls, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of a model's own forward, (batch, length, vocabulary)."""
        logits: Tensor = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits
        return logits

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the encoder's hidden states and, for inputs with a mask, the mask."""
        named = dict(zip(self.input_names, inputs, strict=True))
        hidden: Tensor = self.encoder_of(self.model)(**named)[0]
        return (hidden, *inputs[1:])

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        hidden, *mask = memory
        outputs: Any = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask[0] if mask else None,
            decoder_input_ids=tokens,
            use_cache=False,
        )
        logits: Tensor = outputs.logits
        return logits


def _logits_behind_mask(
    model: Any, head: str, tokens: Tensor, hidden: Tensor, mask: Tensor
) -> Tensor:
    """Returns the logits of a decoder that reads hidden states and their mask."""
    rows = model.model.decoder(
        tokens, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
    )[0]
    logits: Tensor = getattr(model, head)(rows)
    return logits


class MaskWithMemory(HuggingFaceModel):
    """Moonshine: the encoder returns the mask of its output, which `forward` cannot take."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "MoonshineForConditionalGeneration"

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        samples, mask = inputs
        outputs: Any = self.encoder_of(self.model)(samples, attention_mask=mask)
        return outputs.last_hidden_state, outputs.attention_mask

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        return _logits_behind_mask(self.model, "proj_out", tokens, *memory)


class SubsampledMask(HuggingFaceModel):
    """Speech2Text: the encoder shortens its input, so the memory needs a shorter mask."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Speech2TextForConditionalGeneration"

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return ("input_features", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        features, mask = inputs
        encoder: Any = self.encoder_of(self.model)
        hidden: Tensor = encoder(features, attention_mask=mask)[0]
        lengths = encoder._get_feat_extract_output_lengths(mask.sum(-1, keepdim=True))
        return hidden, (torch.arange(hidden.shape[1]) < lengths).to(mask.dtype)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        return _logits_behind_mask(self.model, "lm_head", tokens, *memory)


class ImageInPrompt(HuggingFaceModel):
    """Florence-2: the encoder reads a prompt with placeholder tokens for the image features."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Florence2ForConditionalGeneration"

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


class PlacedPatches(HuggingFaceModel):
    """Pix2Struct: each patch begins with its row and column numbers, which index tables."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Pix2StructForConditionalGeneration"

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
        return type(model).__name__ == "BlipForConditionalGeneration"

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the vision model."""
        encoder: nn.Module = model.vision_model
        return encoder

    @classmethod
    def logits_of(cls, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of a model's own forward, (batch, length, vocabulary)."""
        logits: Tensor = model(**inputs, input_ids=tokens).logits
        return logits

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        outputs = model.text_decoder(tokens, encoder_hidden_states=memory[0], use_cache=False)
        logits: Tensor = outputs.logits
        return logits


ADAPTERS: tuple[type[HuggingFaceModel], ...] = (
    MaskWithMemory,
    SubsampledMask,
    ImageInPrompt,
    PlacedPatches,
    CaptionFromImage,
    HuggingFaceModel,
)
"""Adapter classes; the first one that fits a model adapts it."""

_WITH_LOGITS = ("ForConditionalGeneration", "LMHeadModel", "EncoderDecoderModel", "MTModel")
