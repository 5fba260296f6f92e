"""Hugging Face models whose encoder reads an image together with the words of a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_floats, random_tokens
from tests.models.zoo.transformers.base import enlarge_weights

IMAGE, PATCHES, QUERIES, PLACEHOLDER = 32, 16, 4, VOCABULARY - 1
_VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": IMAGE, "patch_size": 8,
}  # fmt: skip
_QFORMER = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "encoder_hidden_size": 24, "cross_attention_frequency": 2,
    "max_position_embeddings": 80,
}  # fmt: skip
_T5 = {
    "model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 48,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    "tie_word_embeddings": False,
}  # fmt: skip


def _blip2_t5() -> PreTrainedModel:
    return hf.Blip2ForConditionalGeneration(_config(hf.Blip2Config))


def instructblip_t5(
    vocabulary: int = VOCABULARY, words: int = VOCABULARY, image_token: int = PLACEHOLDER
) -> PreTrainedModel:
    """Returns a tiny InstructBLIP with a T5; `words` is the vocabulary of its Q-Former."""
    config = _config(hf.InstructBlipConfig, vocabulary, words, image_token)
    return hf.InstructBlipForConditionalGeneration(config)


def _config(
    kind: Any,
    vocabulary: int = VOCABULARY,
    words: int = VOCABULARY,
    image_token: int = PLACEHOLDER,
) -> Any:
    return kind(
        vision_config=_VISION,
        qformer_config={**_QFORMER, "vocab_size": words},
        text_config={**_T5, "vocab_size": vocabulary},
        num_query_tokens=QUERIES,
        image_token_index=image_token,
    )


def paligemma(kind: str, image_token: int = PLACEHOLDER, **options: Any) -> PreTrainedModel:
    """Returns a tiny PaliGemma with a Gemma of some kind."""
    text = {
        "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 120,
        "tie_word_embeddings": False, **options,
    }  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "projection_dim": 32},
        text_config=text, image_token_index=image_token, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "blip2-t5": _blip2_t5,
    "instructblip-t5": instructblip_t5,
    "paligemma": lambda: paligemma("gemma"),
    "paligemma-2": lambda: paligemma(
        "gemma2", sliding_window=20, query_pre_attn_scalar=1, attn_logit_softcapping=200.0
    ),
}
_PALIGEMMA = ("paligemma", "paligemma-2")
_GAINS = {"blip2-t5": 1.5, "paligemma": 1.5, "paligemma-2": 1.25}
_SEEDS = {  # with others they repeat a token
    "blip2-t5": 12,
    "instructblip-t5": 2,
    "paligemma": 6,
    "paligemma-2": 11,
}


def asked(name: str, batch: int, size: int, seed: int = 5) -> dict[str, Tensor]:
    """Returns pictures and prompts of up to `size` tokens; earlier rows are shorter, and padded."""
    if name in _PALIGEMMA:
        words = random_tokens(VOCABULARY - 1, batch, size, seed=seed)
        places = torch.full((batch, PATCHES), PLACEHOLDER)
        pixels = random_floats(batch, 3, IMAGE, IMAGE, seed=seed)
        return {"pixel_values": pixels, "input_ids": torch.cat([places, words], 1)}
    lengths = torch.tensor([max(2, size - 2 * (batch - 1 - row)) for row in range(batch)])
    mask = (torch.arange(size)[None] < lengths[:, None]).long()
    words = random_tokens(VOCABULARY - 1, batch, size, seed=seed) * mask
    places = torch.ones(batch, QUERIES, dtype=torch.int64)
    inputs = {"pixel_values": random_floats(batch, 3, IMAGE, IMAGE, seed=seed)}
    if name == "instructblip-t5":
        inputs |= {"qformer_input_ids": words, "qformer_attention_mask": mask}
    inputs["input_ids"] = torch.cat([places * PLACEHOLDER, words], 1)
    inputs["attention_mask"] = torch.cat([places, mask], 1)
    return inputs


def _case(name: str) -> Case:
    words, whole = ((1, "words", 2, 24),), ((1, "prompt", 2 + QUERIES, 24 + QUERIES),)
    dynamic = {"input_ids": whole, "attention_mask": whole}
    if name in _PALIGEMMA:
        dynamic = {"input_ids": ((1, "prompt", 2 + PATCHES, 24 + PATCHES),)}
    if name == "instructblip-t5":
        dynamic |= {"qformer_input_ids": words, "qformer_attention_mask": words}
    return Case(
        name=f"hf-{name}",
        family="prompted-images",
        make=lambda: adapt(enlarge_weights(MODELS[name]())),
        inputs=lambda batch, size: asked(name, batch, size),
        sizes=(6, 9),
        dynamic=dynamic,
        gain=_GAINS.get(name, 1.5),
        seed=_SEEDS.get(name, 0),
    )


CASES = {name: _case(name) for name in MODELS}
PROMPTED_IMAGES = tuple(CASES.values())


def model_and_adapter(name: str) -> tuple[PreTrainedModel, HuggingFaceModel]:
    """Returns a model with the weights of its case, and its adapter, which shares them."""
    originals: list[PreTrainedModel] = []

    def make() -> HuggingFaceModel:
        originals.append(enlarge_weights(MODELS[name]()))
        return adapt(originals[0])

    adapter = dataclasses.replace(CASES[name], make=make).model()
    assert isinstance(adapter, HuggingFaceModel)
    return originals[0].eval(), adapter
