"""Hugging Face encoder-decoder models as `encode(*inputs) -> memory` and `decode(tokens, *memory)`.

`HuggingFaceModel` adapts all models with the usual interface of transformers, where `forward` takes
`encoder_outputs` and `decoder_input_ids`. Each model with another interface has a derived class.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput

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
        return required <= names and any(n.endswith(_WITH_LOGITS) for n in _class_names(model))

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
            encoder_outputs=MoEModelOutput(last_hidden_state=hidden),
            attention_mask=mask[0] if mask else None,
            decoder_input_ids=tokens,
            use_cache=False,
        )
        logits: Tensor = outputs.logits
        return logits


def _class_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of a model's class and of the classes that it extends."""
    return tuple(base.__name__ for base in type(model).__mro__)


def _mask_of(lengths: Tensor, hidden: Tensor, like: Tensor) -> Tensor:
    """Returns a mask (batch, memory) with ones up to each length (batch, 1)."""
    return (torch.arange(hidden.shape[1]) < lengths).to(like.dtype)


def _logits_behind_mask(
    decoder: Any, head: Any, tokens: Tensor, hidden: Tensor, mask: Tensor
) -> Tensor:
    """Returns the logits of a decoder that reads hidden states and their mask."""
    rows = decoder(
        tokens, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
    )[0]
    logits: Tensor = head(rows)
    return logits


class MaskWithMemory(HuggingFaceModel):
    """Moonshine: the encoder returns the mask of its output, which `forward` cannot take."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "MoonshineForConditionalGeneration" in _class_names(model)

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        samples, mask = inputs
        outputs: Any = self.encoder_of(self.model)(samples, attention_mask=mask)
        return outputs.last_hidden_state, outputs.attention_mask

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return _logits_behind_mask(model.model.decoder, model.proj_out, tokens, *memory)


class SubsampledMask(HuggingFaceModel):
    """Speech2Text: the encoder shortens its input, so the memory needs a shorter mask."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Speech2TextForConditionalGeneration" in _class_names(model)

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
        return hidden, _mask_of(lengths, hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return _logits_behind_mask(model.model.decoder, model.lm_head, tokens, *memory)


class ImageInPrompt(HuggingFaceModel):
    """Florence-2: the encoder reads a prompt with placeholder tokens for the image features."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Florence2ForConditionalGeneration" in _class_names(model)

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
        return "Pix2StructForConditionalGeneration" in _class_names(model)

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
        return "BlipForConditionalGeneration" in _class_names(model)

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


class SubsampledSpeech(HuggingFaceModel):
    """SeamlessM4T from speech to text: adapters behind the encoder shorten its frames."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"SeamlessM4TForSpeechToText", "SeamlessM4Tv2ForSpeechToText"}
        return not names.isdisjoint(_class_names(model))

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return ("input_features", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        features, mask = inputs
        model: Any = self.model
        hidden: Tensor = model.speech_encoder(features, attention_mask=mask)[0]
        lengths = model._compute_sub_sample_lengths_from_attention_mask(mask)
        return hidden, _mask_of(lengths[:, None], hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return _logits_behind_mask(model.text_decoder, model.lm_head, tokens, *memory)


class SpeechEncoderAndDecoder(HuggingFaceModel):
    """SpeechEncoderDecoder: any encoder of speech, whose mask is shorter than its input's."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "SpeechEncoderDecoderModel" in _class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return (str(cls.encoder_of(model).main_input_name), "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        values, mask = inputs
        model: Any = self.model
        hidden: Tensor = model.encoder(values, attention_mask=mask)[0]
        lengths = _frame_counts(model.encoder, mask)
        if hasattr(model, "enc_to_dec_proj"):
            hidden = model.enc_to_dec_proj(hidden)
        return hidden, _mask_of(lengths, hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        hidden, mask = memory
        logits: Tensor = model.decoder(
            tokens, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
        ).logits
        return logits


def _frame_counts(encoder: Any, mask: Tensor) -> Tensor:
    """Returns the number of frames that an encoder makes of the unmasked samples, (batch, 1)."""
    counts: Tensor = encoder._get_feat_extract_output_lengths(mask.sum(-1, keepdim=True))
    return counts


class TextInBlocks(HuggingFaceModel):
    """Pegasus-X and LongT5: the encoder attends within blocks.

    It pads a text to whole blocks only if the length needs it, and a trace keeps one of the two
    ways. Here every text is padded before the encoder, by an amount that can be zero.
    """

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return _block_length(model) is not None

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, words, width) and the mask (batch, words)."""
        ids, mask = inputs
        block = _block_length(self.model) or 1
        words = ids.shape[1]
        padding = (words + block - 1) // block * block - words
        hidden, _ = super().encode(F.pad(ids, (0, padding)), F.pad(mask, (0, padding)))
        return hidden[:, :words], mask


def _block_length(model: PreTrainedModel) -> int | None:
    """Returns the length that an encoder pads its texts to a multiple of; None if it does not."""
    config: Any = model.config
    if "PegasusXForConditionalGeneration" in _class_names(model):
        return int(config.block_size)
    if "LongT5ForConditionalGeneration" in _class_names(model):
        block = int(config.local_radius) + 1
        has_globals = config.encoder_attention_type == "transient-global"
        return math.lcm(block, int(config.global_block_size)) if has_globals else block
    return None


class MaskByLayerType(HuggingFaceModel):
    """T5Gemma: without masks its decoder hides padding tokens, which `generate()` does not do."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "T5GemmaForConditionalGeneration" in _class_names(model)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        hidden, mask = memory
        steps = torch.arange(tokens.shape[1])
        distance = (steps[:, None] - steps)[None, None]
        causal = distance >= 0
        window = self.model.config.decoder.sliding_window
        outputs: Any = self.model(
            encoder_outputs=MoEModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=tokens,
            decoder_attention_mask={
                "full_attention": causal,
                "sliding_attention": causal & (distance < window),
            },
            use_cache=False,
        )
        logits: Tensor = outputs.logits
        return logits


ADAPTERS: tuple[type[HuggingFaceModel], ...] = (
    MaskWithMemory,
    SubsampledMask,
    ImageInPrompt,
    PlacedPatches,
    CaptionFromImage,
    SubsampledSpeech,
    SpeechEncoderAndDecoder,
    TextInBlocks,
    MaskByLayerType,
    HuggingFaceModel,
)
"""Adapter classes; the first one that fits a model adapts it."""

_WITH_LOGITS = (
    "ForConditionalGeneration",
    "ForTextToText",
    "LMHeadModel",
    "EncoderDecoderModel",
    "MTModel",
)
