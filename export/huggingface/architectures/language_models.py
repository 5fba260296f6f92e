"""Language models without an encoder that read the features of an image or a sound before the text.

The rows before the text depend on the image alone, so they are memory: the encoder graph computes
their keys and values once, and any number of questions can follow. With S rows before the text:

    template    <s> USER: <image> <image> ... <image> Is this a cat? ASSISTANT:
                |--------- prefix_tokens ----------|-- start tokens and prompt --|
    encode      embedded prefix_tokens, features in place of <image>    (batch, S, width)
    decode      language model over cat([prefix, embedded tokens])      (batch, tokens, vocabulary)

The template is fixed by the export: all that stands before the last placeholder, and the number of
features, so all images have one size. What follows it are ordinary tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel

_TOWERS = {"pixel_values": "get_image_features", "input_features": "get_audio_features"}
"""Method that returns the features, by the name of the input."""

_PLACEHOLDERS = ("image_token_id", "audio_token_id", "image_token_index", "audio_token_index")

_OTHER_READING = {"token_type_ids", "mm_token_type_ids", "qformer_input_ids", "encoder_outputs"}
"""Parameters of models that do not read their features like any other token."""


class FeaturesBeforeText(HuggingFaceModel):
    """A language model with `get_image_features` or `get_audio_features` and a placeholder token.

    An example may contain `input_ids` (1, length) as the processor makes them, with one placeholder
    for each feature. Its tokens up to the last placeholder become the fixed prefix. Without them
    the prefix is the config's first token, if it has one, and the features.

    Args:
        model: copy for this adapter that `incremental_copy` made.

    Attributes:
        placeholder: id of the token that stands for a feature; None if the model has none.
        prefix_tokens: the tokens before the text, placeholders included.
        tokens_after: the tokens of the example's `input_ids` after the last placeholder.
    """

    fixed_names = (
        "input_ids",
        "attention_mask",
        "pixel_attention_mask",
        "image_sizes",
        "image_grid_thw",
        "mm_token_type_ids",
        "feature_attention_mask",
        "image_embeds_position_mask",
    )
    is_feature: Tensor
    feature_index: Tensor
    prefix_rows: Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.placeholder = placeholder_of(model)
        self.prefix_tokens: tuple[int, ...] = ()
        self.tokens_after: tuple[int, ...] = ()
        self.fixed: dict[str, Tensor] = {}

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        parameters = set(inspect.signature(model.forward).parameters)
        return (
            "inputs_embeds" in parameters
            and parameters.isdisjoint(_OTHER_READING)
            and model.can_generate()
            and placeholder_of(model) is not None
            and _tower(model) is not None
        )

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the name of the image or the sound."""
        return (_tower(model) or "pixel_values",)

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the vision or audio tower."""
        is_sound = "input_features" in cls.inputs_of(model)
        encoder: nn.Module = model.get_encoder(modality="audio" if is_sound else "image")
        return encoder

    @property
    def placeholder_count(self) -> int:
        """The number of features before the text."""
        return int(self.is_feature.sum())

    @torch.no_grad()
    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the template and the sizes of the image or sound from an example.

        Raises:
            UsageError: `input_ids` has another number of placeholders than there are features, or
                rows with different templates.
        """
        self.fixed = {name: example[name][:1] for name in self.fixed_names if name in example}
        row = tuple(self.example[name][:1] for name in self.input_names)
        features = self.features(*row)
        ids, is_feature = self.template(features.shape[1])
        count = int(is_feature.sum())
        if count != features.shape[1]:
            raise UsageError(
                f"input_ids has {count} placeholders, and {' and '.join(self.input_names)} give "
                f"{features.shape[1]} features; give the input_ids of the model's processor, with "
                "a placeholder for each feature"
            )
        _check_same_template(example.get("input_ids"))
        length = int(is_feature.nonzero().max()) + 1
        self.prefix_tokens = tuple(ids[:length].tolist())
        self.tokens_after = tuple(ids[length:].tolist())
        is_feature = is_feature[:length]
        # a placeholder can lie outside of the vocabulary; its row is not used
        embedded = self.embed(ids[:length].masked_fill(is_feature, 0)[None])[0]
        index = (is_feature.cumsum(0) - 1).clamp(min=0)
        for name, value in {
            "is_feature": is_feature[:, None],
            "feature_index": index,
            "prefix_rows": embedded,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def template(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens (length,) of the example, and which of them stand for features.

        Args:
            count: number of features.
        """
        ids = self.fixed.get("input_ids")
        assert self.placeholder is not None
        if ids is None:
            first = _first_token(self.model.config)
            ids = torch.tensor([[*first, *([self.placeholder] * count)]])
        return ids[0], torch.eq(ids[0], self.placeholder)

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images or sounds, (batch, features, width of the text)."""
        (name,) = self.input_names
        model: Any = self.model
        method = getattr(model, _TOWERS[name])
        known = inspect.signature(inspect.unwrap(method)).parameters
        sizes = {key: value for key, value in self.fixed.items() if key in known}
        return rows_by_sequence(method(*inputs, **sizes).pooler_output, inputs[0].shape[0])

    def embed(self, tokens: Tensor) -> Tensor:
        """Returns the embedded tokens, (batch, length, width)."""
        rows: Tensor = self.model.get_input_embeddings()(tokens)
        return rows

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the rows before the text, (batch, prefix, width)."""
        features = self.features(*inputs)[:, self.feature_index]
        return (torch.where(self.is_feature, features, self.prefix_rows),)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens of the text, (batch, length, vocabulary)."""
        (prefix,) = memory
        rows = torch.cat([prefix, self.embed(tokens)], 1)
        return self.logits(rows)[:, prefix.shape[1] :]

    def logits(self, rows: Tensor) -> Tensor:
        """Returns the logits of embedded rows, (batch, rows, vocabulary)."""
        logits: Tensor = self.model(inputs_embeds=rows, use_cache=False).logits
        return logits

    def logits_of(self, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of a model's own forward behind the prefix."""
        rows = tokens.shape[0]
        prefix = torch.tensor(self.prefix_tokens, dtype=torch.int64).expand(rows, -1)
        own = self.own_inputs(torch.cat([prefix, tokens], 1), **inputs)
        logits: Tensor = model(**own, use_cache=False).logits
        return logits[:, -tokens.shape[1] :]

    def own_inputs(self, ids: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the inputs that the model's own forward and generate() take.

        Args:
            ids: (batch, length) int64, the prefix and the tokens of the text.
            inputs: images or sounds by name, batch first.
        """
        known = inspect.signature(self.model.forward).parameters
        own = {
            name: value.expand(len(ids), *value.shape[1:])
            for name, value in self.fixed.items()
            if name in known and name not in ("input_ids", "attention_mask")
        }
        return {"input_ids": ids, **inputs, **own}


def placeholder_of(model: PreTrainedModel) -> int | None:
    """Returns the id of the token that stands for a feature; None if there is none."""
    ids = (getattr(model.config, name, None) for name in _PLACEHOLDERS)
    return next((int(token) for token in ids if isinstance(token, int)), None)


def rows_by_sequence(features: Any, batch: int) -> Tensor:
    """Returns features as (batch, features, width), whatever the axes of images and tiles are."""
    if isinstance(features, (list, tuple)):
        features = torch.cat(list(features))
    rows: Tensor = features.reshape(batch, -1, features.shape[-1])
    return rows


def _tower(model: PreTrainedModel) -> str | None:
    """Returns the name of the input whose features a model has a method for."""
    names = inspect.signature(model.forward).parameters
    towers = (name for name, method in _TOWERS.items() if hasattr(model, method) and name in names)
    return next(towers, None)


def _first_token(config: Any) -> list[int]:
    """Returns the token that starts a text; none if the config names none."""
    for part in (config, config.get_text_config()):
        token = getattr(part, "bos_token_id", None)
        if isinstance(token, int):
            return [token]
    return []


def _check_same_template(ids: Tensor | None) -> None:
    if ids is not None and bool((ids != ids[:1]).any()):
        raise UsageError(
            "the rows of input_ids differ; all images follow one template, so give one row"
        )
