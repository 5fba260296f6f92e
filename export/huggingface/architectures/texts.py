"""Texts: encoders that attend within blocks, decoders with masks of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel, class_names


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
    if "PegasusXForConditionalGeneration" in class_names(model):
        return int(config.block_size)
    if "LongT5ForConditionalGeneration" in class_names(model):
        block = int(config.local_radius) + 1
        has_globals = config.encoder_attention_type == "transient-global"
        return math.lcm(block, int(config.global_block_size)) if has_globals else block
    return None


class MaskByLayerType(HuggingFaceModel):
    """T5Gemma: without masks its decoder hides padding tokens, which `generate()` does not do."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "T5GemmaForConditionalGeneration" in class_names(model)

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


class BatchSecond(HuggingFaceModel):
    """FSMT: its `forward` reads the masks from `input_ids`, and its decoder returns logits."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "FSMTForConditionalGeneration" in class_names(model)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        hidden, mask = memory
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        model: Any = self.model
        logits: Tensor = model.model.decoder(
            tokens,
            hidden,
            encoder_padding_mask=mask,
            decoder_padding_mask=None,
            decoder_causal_mask=causal,
            use_cache=False,
        )[0]
        return logits
