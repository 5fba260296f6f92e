"""The usual interface of transformers, where `forward` takes the encoder's outputs and tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput

_INPUTS_WITH_MASK = ("flattened_patches", "input_ids", "input_values")

_WITH_LOGITS = (
    "ForConditionalGeneration",
    "ForTextToText",
    "LMHeadModel",
    "EncoderDecoderModel",
    "MTModel",
)


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
    fixed_names: tuple[str, ...] = ()
    """Names of what an example may contain besides the encoder's inputs, fixed by the export."""
    placeholder: int | None = None
    """Token that stands for a part of an image or a sound; None if the model has none."""

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
        return required <= names and any(n.endswith(_WITH_LOGITS) for n in class_names(model))

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

    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the values from an example that the export fixes.

        Args:
            example: values by name; some of `fixed_names`, or none.
        """

    def logits_of(self, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
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


def class_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Returns the names of a model's class and of the classes that it extends."""
    return tuple(base.__name__ for base in type(model).__mro__)


def mask_of(lengths: Tensor, hidden: Tensor, like: Tensor) -> Tensor:
    """Returns a mask (batch, memory) with ones up to each length (batch, 1)."""
    return (torch.arange(hidden.shape[1]) < lengths).to(like.dtype)


def logits_behind_mask(
    decoder: Any, head: Any, tokens: Tensor, hidden: Tensor, mask: Tensor
) -> Tensor:
    """Returns the logits of a decoder that reads hidden states and their mask."""
    rows = decoder(
        tokens, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
    )[0]
    logits: Tensor = head(rows)
    return logits
