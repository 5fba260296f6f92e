"""Speech: encoders that shorten their input, so the memory needs a mask of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.architectures.base import (
    HuggingFaceModel,
    class_names,
    logits_behind_mask,
    mask_of,
)


class MaskWithMemory(HuggingFaceModel):
    """Moonshine: the encoder returns the mask of its output, which `forward` cannot take."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "MoonshineForConditionalGeneration" in class_names(model)

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        samples, mask = inputs
        outputs: Any = self.encoder_of(self.model)(samples, attention_mask=mask)
        return outputs.last_hidden_state, outputs.attention_mask

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return logits_behind_mask(model.model.decoder, model.proj_out, tokens, *memory)


class SubsampledMask(HuggingFaceModel):
    """Speech2Text: the encoder shortens its input, so the memory needs a shorter mask."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Speech2TextForConditionalGeneration" in class_names(model)

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
        return hidden, mask_of(lengths, hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return logits_behind_mask(model.model.decoder, model.lm_head, tokens, *memory)


class SubsampledSpeech(HuggingFaceModel):
    """SeamlessM4T from speech to text: adapters behind the encoder shorten its frames."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"SeamlessM4TForSpeechToText", "SeamlessM4Tv2ForSpeechToText"}
        return not names.isdisjoint(class_names(model))

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
        return hidden, mask_of(lengths[:, None], hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        model: Any = self.model
        return logits_behind_mask(model.text_decoder, model.lm_head, tokens, *memory)


class SpeechEncoderAndDecoder(HuggingFaceModel):
    """SpeechEncoderDecoder: any encoder of speech, whose mask is shorter than its input's."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "SpeechEncoderDecoderModel" in class_names(model)

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
        return hidden, mask_of(lengths, hidden, mask)

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
