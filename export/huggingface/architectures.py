"""Hugging Face encoder-decoder models as `encode(*inputs) -> memory` and `decode(tokens, *memory)`.

`HuggingFaceModel` serves all models that follow transformers' own interface, where `forward` takes
`encoder_outputs` and `decoder_input_ids`; a class derived from it each model that does not.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

_MASKED = ("flattened_patches", "input_ids", "input_values")


class HuggingFaceModel(nn.Module):
    """A Hugging Face encoder-decoder model, ready for the exporter.

    Args:
        model: the adapter's own copy, already made incremental.

    Attributes:
        input_names: the encoder's inputs, named as `forward` and the processor name them. With
            an `attention_mask` (1 for what is no padding), which is also the last memory tensor.
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
        wanted = {"encoder_outputs", "decoder_input_ids", model.main_input_name}
        return wanted <= names and type(model).__name__.endswith(_WITH_LOGITS)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Names the encoder's inputs."""
        name = str(model.main_input_name)
        return (name, "attention_mask") if name in _MASKED else (name,)

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the part of a model that the decoder does not need."""
        encoder: nn.Module = model.get_encoder()
        return encoder

    @classmethod
    def logits_of(cls, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits that a model's own forward gives, for comparison."""
        logits: Tensor = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits
        return logits

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the encoder's hidden states, and the mask of their padding if there is one."""
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
    """Runs a decoder and its head on memory that comes with a mask of its own."""
    rows = model.model.decoder(
        tokens, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
    )[0]
    logits: Tensor = getattr(model, head)(rows)
    return logits


class MaskWithMemory(HuggingFaceModel):
    """Moonshine: the encoder gives the mask of its own output, and takes none for the decoder."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "MoonshineForConditionalGeneration"

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states and their mask."""
        samples, mask = inputs
        outputs: Any = self.encoder_of(self.model)(samples, attention_mask=mask)
        return outputs.last_hidden_state, outputs.attention_mask

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        return _logits_behind_mask(self.model, "proj_out", tokens, *memory)


class SubsampledMask(HuggingFaceModel):
    """Speech2Text: the encoder's mask is shorter than its input's."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Speech2TextForConditionalGeneration"

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Names the encoder's inputs."""
        return ("input_features", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states and their mask."""
        features, mask = inputs
        encoder: Any = self.encoder_of(self.model)
        hidden: Tensor = encoder(features, attention_mask=mask)[0]
        lengths = encoder._get_feat_extract_output_lengths(mask.sum(-1, keepdim=True))
        return hidden, (torch.arange(hidden.shape[1]) < lengths).to(mask.dtype)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        return _logits_behind_mask(self.model, "lm_head", tokens, *memory)


class ImageInPrompt(HuggingFaceModel):
    """Florence-2: the encoder reads a prompt, in which placeholders stand for the image."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Florence2ForConditionalGeneration"

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Names the encoder's inputs."""
        return ("pixel_values", "input_ids", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states of image and prompt, and the prompt's mask."""
        pixels, prompt, mask = inputs
        model: Any = self.model.model
        features: Tensor = model.get_image_features(pixels).pooler_output
        rows = model.get_input_embeddings()(prompt)
        # masked_scatter by row: the n-th placeholder takes the n-th feature
        placeholders = prompt == self.model.config.image_token_id
        index = (placeholders.cumsum(1) - 1).clamp(0, features.shape[1] - 1)
        picked = features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[2]))
        rows = torch.where(placeholders.unsqueeze(-1), picked, rows)
        hidden: Tensor = model.language_model.encoder(inputs_embeds=rows, attention_mask=mask)[0]
        return hidden, mask


class PlacedPatches(HuggingFaceModel):
    """Pix2Struct: each patch begins with its row and column, which index tables."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return type(model).__name__ == "Pix2StructForConditionalGeneration"

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states and the patches' mask; places stay within the tables."""
        patches, mask = inputs
        places = patches[..., :2].clamp(0, self.model.config.vision_config.seq_len - 1)
        return super().encode(torch.cat([places, patches[..., 2:]], -1), mask)


class CaptionFromImage(HuggingFaceModel):
    """BLIP captioning: a text decoder that is called with the image's hidden states."""

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
        """Returns the logits that a model's own forward gives, for comparison."""
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
"""The adapters; the first that fits a model is its."""

_WITH_LOGITS = ("ForConditionalGeneration", "LMHeadModel", "EncoderDecoderModel", "MTModel")
