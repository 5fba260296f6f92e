"""Speech: encoders that shorten their input, so the memory has a mask of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.architectures.base import (
    HuggingFaceModel,
    class_names,
    logits_behind_mask,
    mask_of,
)


class MaskedSpeech(HuggingFaceModel):
    """A model whose memory is a sequence of frames and the mask of these frames.

    Attributes:
        CLASSES: names of the classes of transformers that a subclass adapts.
    """

    CLASSES: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return not cls.CLASSES.isdisjoint(class_names(model))

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return (str(cls.encoder_of(model).main_input_name), "attention_mask")

    def frame_counts(self, mask: Tensor) -> Tensor:
        """Returns the number of frames that are no padding, (batch, 1), by the input's mask."""
        encoder: Any = self.encoder_of(self.model)
        counts: Tensor = encoder._get_feat_extract_output_lengths(mask.sum(-1, keepdim=True))
        return counts

    def decoder_and_head(self) -> tuple[Any, Any]:
        """Returns the decoder, and the projection of its rows to logits."""
        model: Any = self.model
        return model.model.decoder, model.lm_head

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        values, mask = inputs
        encoder: Any = self.encoder_of(self.model)
        hidden: Tensor = encoder(values, attention_mask=mask)[0]
        return hidden, mask_of(self.frame_counts(mask), hidden, mask)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        return logits_behind_mask(*self.decoder_and_head(), tokens, *memory)


class SubsampledMask(MaskedSpeech):
    """Speech2Text: convolutions in front of the encoder shorten its frames."""

    CLASSES = frozenset({"Speech2TextForConditionalGeneration"})


class MaskWithMemory(MaskedSpeech):
    """Moonshine, Canary and CohereAsr: the encoder returns the mask of its output."""

    CLASSES = frozenset(
        {
            "CanaryForConditionalGeneration",
            "CohereAsrForConditionalGeneration",
            "MoonshineForConditionalGeneration",
        }
    )

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        values, mask = inputs
        outputs: Any = self.encoder_of(self.model)(values, attention_mask=mask)
        return outputs.last_hidden_state, outputs.attention_mask

    def decoder_and_head(self) -> tuple[Any, Any]:
        """Returns the decoder, and the projection of its rows to logits."""
        model: Any = self.model
        return model.model.decoder, model.proj_out


class WholeFrames(MaskWithMemory):
    """MoonshineStreaming: the encoder takes whole frames of samples.

    Its processor pads a waveform to whole frames; here the adapter does. Its decoder adds positions
    to the memory in place, so every call gets a copy.
    """

    CLASSES = frozenset({"MoonshineStreamingForConditionalGeneration"})

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        values, mask = inputs
        encoder: Any = self.encoder_of(self.model)
        frame = int(encoder.embedder.frame_len)
        samples = values.shape[1]
        missing = (samples + frame - 1) // frame * frame - samples
        return super().encode(F.pad(values, (0, missing)), F.pad(mask, (0, missing)))

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        hidden, mask = memory
        return super().decode(tokens, hidden.clone(), mask)


class SubsampledSpeech(MaskedSpeech):
    """SeamlessM4T from speech to text: adapters behind the encoder shorten its frames."""

    CLASSES = frozenset({"SeamlessM4TForSpeechToText", "SeamlessM4Tv2ForSpeechToText"})

    def frame_counts(self, mask: Tensor) -> Tensor:
        """Returns the number of frames that are no padding, (batch, 1), by the input's mask."""
        model: Any = self.model
        counts: Tensor = model._compute_sub_sample_lengths_from_attention_mask(mask)[:, None]
        return counts

    def decoder_and_head(self) -> tuple[Any, Any]:
        """Returns the decoder, and the projection of its rows to logits."""
        model: Any = self.model
        return model.text_decoder, model.lm_head


class SpeechWithPrenets(MaskedSpeech):
    """SpeechT5 from speech to text: a network in front of the encoder shortens its samples."""

    CLASSES = frozenset({"SpeechT5ForSpeechToText"})

    def frame_counts(self, mask: Tensor) -> Tensor:
        """Returns the number of frames that are no padding, (batch, 1), by the input's mask."""
        prenet: Any = self.encoder_of(self.model).prenet
        counts: Tensor = prenet._get_feat_extract_output_lengths(mask.sum(-1, keepdim=True))
        return counts

    def decoder_and_head(self) -> tuple[Any, Any]:
        """Returns the decoder, and the projection of its rows to logits."""
        model: Any = self.model
        return model.speecht5.decoder, model.text_decoder_postnet


class SpeechEncoderAndDecoder(MaskedSpeech):
    """SpeechEncoderDecoder: any encoder of speech, and a decoder that returns logits itself."""

    CLASSES = frozenset({"SpeechEncoderDecoderModel"})

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states (batch, memory, width) and their mask (batch, memory)."""
        hidden, mask = super().encode(*inputs)
        model: Any = self.model
        if hasattr(model, "enc_to_dec_proj"):
            hidden = model.enc_to_dec_proj(hidden)
        return hidden, mask

    def decoder_and_head(self) -> tuple[Any, Any]:
        """Returns the decoder, whose first output are logits, and a function that keeps them."""
        model: Any = self.model
        return model.decoder, lambda logits: logits
