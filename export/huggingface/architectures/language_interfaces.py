"""Language models behind images or sounds, with an interface of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.huggingface.architectures.base import class_names
from hybrid_deploy.export.huggingface.architectures.language_models import FeaturesBeforeText

_HIDDEN = -1e9  # added to the score of a hidden key; its weight is then zero


class QueriesBeforeText(FeaturesBeforeText):
    """BLIP-2 with a language model that has no encoder: its `forward` needs an image."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        has_class = "Blip2ForConditionalGeneration" in class_names(model)
        return has_class and bool(model.config.use_decoder_only_language_model)

    def logits(self, rows: Tensor) -> Tensor:
        """Returns the logits of embedded rows, (batch, rows, vocabulary)."""
        model: Any = self.model
        logits: Tensor = model.language_model(inputs_embeds=rows, use_cache=False).logits
        return logits


class MarkedPlaces(FeaturesBeforeText):
    """Kosmos-2: `image_embeds_position_mask` marks the places of the features, no token does."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Kosmos2ForConditionalGeneration" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the name of the image."""
        return ("pixel_values",)

    def template(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens (length,) of the example, and which of them stand for features.

        Raises:
            UsageError: `input_ids` comes without the mask.
        """
        ids, marks = (self.fixed.get(name) for name in ("input_ids", "image_embeds_position_mask"))
        if ids is None:
            # the token in a feature's place does not count, as long as it is no padding
            first = int(self.model.config.text_config.bos_token_id)
            return torch.full((count + 1,), first), torch.arange(count + 1) > 0
        if marks is None:
            raise UsageError(
                "input_ids needs image_embeds_position_mask, 1 where an image feature stands; give "
                "both as the model's processor makes them"
            )
        return ids[0], marks[0].bool()

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images, (batch, features, width of the text)."""
        model: Any = self.model
        hidden = model.vision_model(pixel_values=inputs[0])[0]
        normed = F.normalize(model.vision_model.model.post_layernorm(hidden), dim=-1)
        features: Tensor = model.image_to_text_projection(normed)[0]
        return features

    def logits(self, rows: Tensor) -> Tensor:
        """Returns the logits of embedded rows, (batch, rows, vocabulary)."""
        model: Any = self.model
        logits: Tensor = model.text_model(inputs_embeds=rows, use_cache=False).logits
        return logits

    def own_inputs(self, ids: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the inputs that the model itself takes."""
        text = torch.zeros(ids.shape[1] - len(self.is_feature), dtype=torch.int64)
        marks = torch.cat([self.is_feature[:, 0].long(), text])
        return {"input_ids": ids, **inputs, "image_embeds_position_mask": marks.expand_as(ids)}


class ImageWithoutTokens(FeaturesBeforeText):
    """GIT: image rows that see each other stand before the text, whose positions begin at zero."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "GitForCausalLM" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the name of the image."""
        return ("pixel_values",)

    def template(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens (length,) of the example behind the features."""
        ids = self.fixed.get("input_ids", torch.zeros(1, 0, dtype=torch.int64))[0]
        features = torch.ones(count, dtype=torch.bool)
        return torch.cat([torch.zeros(count, dtype=torch.int64), ids]), F.pad(
            features, (0, len(ids))
        )

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of images, (batch, features, width of the text)."""
        model: Any = self.model
        features: Tensor = model.git.visual_projection(model.git.image_encoder(inputs[0])[0])
        return features

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens of the text, (batch, length, vocabulary)."""
        (image,) = memory
        model: Any = self.model
        rows = torch.cat([image, model.git.embeddings(input_ids=tokens)], 1)
        index = torch.arange(rows.shape[1])
        visible = (index[None] <= index[:, None]) | (index < image.shape[1])
        mask = torch.zeros(visible.shape).masked_fill(~visible, _HIDDEN)
        hidden = model.git.encoder(rows, attention_mask=mask).last_hidden_state
        logits: Tensor = model.output(hidden[:, image.shape[1] :])
        return logits

    def own_inputs(self, ids: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Returns the inputs that the model itself takes."""
        return {"input_ids": ids[:, len(self.is_feature) :], **inputs}


class FixedSound(FeaturesBeforeText):
    """Qwen2-Audio: a sound of fixed length; the example's `feature_attention_mask` tells it."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Qwen2AudioForConditionalGeneration" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the name of the sound."""
        return ("input_features",)

    def fix(self, example: Mapping[str, Tensor]) -> None:
        """Takes the template and the length of the sound from an example.

        Raises:
            UsageError: `input_ids` does not fit, or the lengths differ.
        """
        tower: Any = self.encoder_of(self.model)
        sound = self.example["input_features"]
        whole = torch.ones(1, sound.shape[2], dtype=torch.int64)
        mask = example.get("feature_attention_mask", whole)
        if (mask != mask[:1]).any():
            raise UsageError(
                "the rows of feature_attention_mask differ; all sounds have one length, so pad or "
                "cut them to it"
            )
        frames, count = tower._get_feat_extract_output_lengths(mask[0].sum())
        self.visible = torch.arange((sound.shape[2] - 2) // 2 + 1) < frames
        self.count = int(count)
        super().fix({**example, "feature_attention_mask": mask[:1]})

    def features(self, *inputs: Tensor) -> Tensor:
        """Returns the features of sounds, (batch, features, width of the text)."""
        model: Any = self.model.model
        mask = self.visible[None, None, None]
        hidden = model.audio_tower(inputs[0], attention_mask=mask).last_hidden_state
        features: Tensor = model.multi_modal_projector(hidden)[:, : self.count]
        return features
