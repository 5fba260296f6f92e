"""Images with a prompt that the encoder reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput

from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel, class_names


class ImageInPrompt(HuggingFaceModel):
    """Florence-2: the encoder reads a prompt with placeholder tokens for the image features."""

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "Florence2ForConditionalGeneration" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return ("pixel_values", "input_ids", "attention_mask")

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states of the prompt, image features included, and its mask."""
        pixels, prompt, mask = inputs
        model: Any = self.model.model
        features: Tensor = model.get_image_features(pixels).pooler_output
        embedded = model.get_input_embeddings()(prompt)
        rows = placed(features, embedded, prompt == self.model.config.image_token_id)
        hidden: Tensor = model.language_model.encoder(inputs_embeds=rows, attention_mask=mask)[0]
        return hidden, mask


class QueriesInPrompt(HuggingFaceModel):
    """BLIP-2 and InstructBLIP with a T5, whose encoder reads the image's queries and the prompt.

    InstructBLIP's Q-Former reads the prompt too, with a tokenizer of its own.
    """

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        names = {"Blip2ForConditionalGeneration", "InstructBlipForConditionalGeneration"}
        fits_class = not names.isdisjoint(class_names(model))
        return fits_class and not model.config.use_decoder_only_language_model

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        asks_queries = "InstructBlipForConditionalGeneration" in class_names(model)
        queries = ("qformer_input_ids", "qformer_attention_mask") if asks_queries else ()
        return ("pixel_values", *queries, "input_ids", "attention_mask")

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the encoder of the language model."""
        whole: Any = model
        encoder: nn.Module = whole.language_model.get_encoder()
        return encoder

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the hidden states of the prompt, queries included, and its mask."""
        *image, prompt, mask = inputs
        model: Any = self.model
        features: Tensor = model.get_image_features(*image).pooler_output
        embedded = model.get_input_embeddings()(prompt)
        rows = placed(features, embedded, prompt == model.config.image_token_id)
        encoder = self.encoder_of(model)
        return encoder(inputs_embeds=rows, attention_mask=mask)[0], mask

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        hidden, mask = memory
        model: Any = self.model
        logits: Tensor = model.language_model(
            encoder_outputs=MoEModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=tokens,
            use_cache=False,
        ).logits
        return logits


class SeenWholePrompt(HuggingFaceModel):
    """PaliGemma: image and prompt stand before the answer, and all of them see each other.

    The whole prompt is memory, so no token of it is left to start the answer with. The first token
    of `decode`, whatever it is, stands for the last one of the prompt: it has the same row and
    position, and no other token sees it.

        keys       prompt 0 .. P-1   first token (= prompt P-1)   tokens 1, 2, ...
        prompt     all               none                         none
        token i    all               none                         up to i
    """

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Returns whether this class adapts a model."""
        return "PaliGemmaForConditionalGeneration" in class_names(model)

    @classmethod
    def inputs_of(cls, model: PreTrainedModel) -> tuple[str, ...]:
        """Returns the names of the encoder's inputs."""
        return ("pixel_values", "input_ids")

    @classmethod
    def encoder_of(cls, model: PreTrainedModel) -> nn.Module:
        """Returns the vision tower."""
        whole: Any = model
        encoder: nn.Module = whole.model.vision_tower
        return encoder

    @classmethod
    def logits_of(cls, model: PreTrainedModel, tokens: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of a model's own forward from the end of the prompt on."""
        prompt = inputs["input_ids"]
        own = {
            "pixel_values": inputs["pixel_values"],
            "input_ids": torch.cat([prompt, tokens[:, 1:]], 1),
            "token_type_ids": torch.cat(
                [torch.zeros_like(prompt), torch.ones_like(tokens[:, 1:])], 1
            ),
        }
        logits: Tensor = model(**own, use_cache=False).logits
        return logits[:, prompt.shape[1] - 1 :]

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the embedded prompt, image features included, (batch, length, width)."""
        pixels, prompt = inputs
        model: Any = self.model
        features: Tensor = model.get_image_features(pixels).pooler_output
        placeholders = prompt == model.config.image_token_id
        # a placeholder can lie outside of the vocabulary; its row is not used
        embedded = model.get_input_embeddings()(prompt.masked_fill(placeholders, 0))
        return (placed(features, embedded, placeholders),)

    def decode(self, tokens: Tensor, *memory: Tensor) -> Tensor:
        """Returns the logits of all tokens, (batch, length, vocabulary)."""
        (prompt,) = memory
        model: Any = self.model
        before, length = prompt.shape[1], tokens.shape[1]
        is_first = torch.arange(length)[:, None] == 0
        answer = torch.where(is_first, prompt[:, -1:], model.get_input_embeddings()(tokens))
        steps = torch.arange(length)
        prompt_places = torch.arange(before)
        # positions count from 1, and the first token has that of the prompt's last one
        places = torch.cat([prompt_places, steps + before - 1])
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([prompt, answer], 1),
            attention_mask=self._masks(before, length),
            position_ids=places[None] + 1,
            use_cache=False,
        )[0]
        logits: Tensor = model.lm_head(hidden[:, before:])
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _masks(self, before: int, length: int) -> Any:
        """Returns the visible keys (1, 1, rows, rows) bool, or those of each kind of layer."""
        rows = torch.arange(before + length)
        query, key = rows[:, None], rows[None]
        in_prompt = key < before
        visible = in_prompt | ((key > before) & (key <= query))
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if window is None:
            return visible[None, None]
        place = torch.where(rows < before, rows, rows - 1)
        near = (place[:, None] - place[None] < window) | ((query <= before) & in_prompt)
        return {
            "full_attention": visible[None, None],
            "sliding_attention": (visible & near)[None, None],
        }


def placed(features: Tensor, embedded: Tensor, placeholders: Tensor) -> Tensor:
    """Returns the embedded prompt with the n-th feature in place of the n-th placeholder.

    Args:
        features: (batch, features, width).
        embedded: (batch, length, width).
        placeholders: (batch, length) bool; as many in each row as there are features.
    """
    index = (placeholders.cumsum(1) - 1).clamp(0, features.shape[1] - 1)
    picked = features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[2]))
    return torch.where(placeholders.unsqueeze(-1), picked, embedded)
