"""Tiny language models of transformers that read an image or a sound before the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.language_models import FeaturesBeforeText
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_floats
from tests.models.zoo.transformers.base import enlarge_weights

PLACEHOLDER = VOCABULARY - 1
BEFORE, AFTER = (1, 17, 23), (29,)
"""Tokens of the template before and after the features."""

_LONGEST = 160
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT = {
    **_SIZES,
    **_TOKENS,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 1,
    "max_position_embeddings": _LONGEST,
    "tie_word_embeddings": False,
}
_VISION = {**_SIZES, "image_size": 16, "patch_size": 4}
_RESOLUTIONS = [[16, 32], [32, 16], [32, 32]]
_WHOLE_IMAGE = (24, 32)
"""Height and width of an image before it is cut into the four tiles of the last resolution."""

_PLACES = {
    **_TEXT,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
}
_GRID = {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_IMAGE = {"image_token_id": PLACEHOLDER, "video_token_id": VOCABULARY - 2}


def _tiled(name: str) -> PreTrainedModel:
    """Returns an Idefics3 or a SmolVLM."""
    config = getattr(hf, f"{name}Config")(
        vision_config=dict(_VISION),
        text_config={**_TEXT, "model_type": "llama"},
        image_token_id=PLACEHOLDER,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = getattr(hf, f"{name}ForConditionalGeneration")(config)
    return model


def onevision(most_tiles: int = 9) -> PreTrainedModel:
    """Returns a LLaVA-OneVision that averages the features of more tiles than this."""
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_VISION),
        text_config=hf.Qwen2Config(**_TEXT),
        image_token_index=PLACEHOLDER,
        image_grid_pinpoints=_RESOLUTIONS,
        vision_aspect_ratio=f"anyres_max_{most_tiles}",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _blip2() -> PreTrainedModel:
    queries = {**_SIZES, "hidden_size": 24, "encoder_hidden_size": 32}
    text = {**_SIZES, **_TOKENS, "vocab_size": VOCABULARY, "max_position_embeddings": _LONGEST}
    config = hf.Blip2Config(
        vision_config=dict(_VISION),
        qformer_config={**queries, "vocab_size": 20, "cross_attention_frequency": 1},
        text_config={**text, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
        num_query_tokens=6,
        image_token_index=PLACEHOLDER,
    )
    return hf.Blip2ForConditionalGeneration(config)


def _kosmos2() -> PreTrainedModel:
    text = {"embed_dim": 32, "ffn_dim": 48, "layers": 3, "attention_heads": 2}
    config = hf.Kosmos2Config(
        vision_config=dict(_VISION),
        text_config={
            **text,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": _LONGEST,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        latent_query_num=5,
    )
    return hf.Kosmos2ForConditionalGeneration(config)


def _qwen2_audio() -> PreTrainedModel:
    sound = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
    config = hf.Qwen2AudioConfig(
        audio_config={
            **sound,
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 8,
            "encoder_ffn_dim": 48,
            "max_source_positions": 16,
        },
        text_config=hf.Qwen2Config(**_TEXT),
        audio_token_index=PLACEHOLDER,
    )
    return hf.Qwen2AudioForConditionalGeneration(config)


def _got_ocr2() -> PreTrainedModel:
    vision = {k: v for k, v in _SIZES.items() if k != "intermediate_size"}
    config = hf.GotOcr2Config(
        vision_config={
            **vision,
            "output_channels": 16,
            "mlp_dim": 48,
            "image_size": 32,
            "patch_size": 4,
            "window_size": 3,
            "global_attn_indexes": [1],
        },
        text_config=hf.Qwen2Config(**_TEXT),
        image_token_index=PLACEHOLDER,
        pad_token_id=0,
    )
    return hf.GotOcr2ForConditionalGeneration(config)


def _qwen2_5_vl() -> PreTrainedModel:
    vision = {"depth": 3, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
    windows = {"window_size": 16, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(
        vision_config={**vision, **_GRID, **windows}, text_config=_PLACES, **_IMAGE
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen2_vl() -> PreTrainedModel:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    config = hf.Qwen2VLConfig(vision_config={**vision, **_GRID}, text_config=_PLACES, **_IMAGE)
    return hf.Qwen2VLForConditionalGeneration(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**_VISION, projection_dim=32),
            text_config=hf.LlamaConfig(**_TEXT),
            image_token_index=PLACEHOLDER,
        )
    ),
    "internvl": lambda: hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(
            vision_config={**_SIZES, "image_size": [16, 16], "patch_size": [4, 4]},
            text_config=hf.Qwen2Config(**_TEXT),
            image_token_id=PLACEHOLDER,
        )
    ),
    "aya-vision": lambda: hf.AyaVisionForConditionalGeneration(
        hf.AyaVisionConfig(
            vision_config=hf.SiglipVisionConfig(**_VISION),
            text_config=hf.Cohere2Config(**_TEXT),
            image_token_index=PLACEHOLDER,
        )
    ),
    "cohere2-vision": lambda: hf.Cohere2VisionForConditionalGeneration(
        hf.Cohere2VisionConfig(
            vision_config=hf.SiglipVisionConfig(**_VISION),
            text_config=hf.Cohere2Config(**_TEXT),
            image_token_id=PLACEHOLDER,
            alignment_intermediate_size=48,
        )
    ),
    "vipllava": lambda: hf.VipLlavaForConditionalGeneration(
        hf.VipLlavaConfig(
            vision_config=hf.CLIPVisionConfig(**_VISION, projection_dim=32),
            text_config=hf.LlamaConfig(**_TEXT),
            image_token_index=PLACEHOLDER,
            vision_feature_layer=[-1, -2],
        )
    ),
    "llava-next": lambda: hf.LlavaNextForConditionalGeneration(
        hf.LlavaNextConfig(
            vision_config=hf.CLIPVisionConfig(**_VISION, projection_dim=32),
            text_config=hf.LlamaConfig(**_TEXT),
            image_token_index=PLACEHOLDER,
            image_grid_pinpoints=_RESOLUTIONS,
        )
    ),
    "llava-onevision": onevision,
    "smolvlm": lambda: _tiled("SmolVLM"),
    "idefics3": lambda: _tiled("Idefics3"),
    "git": lambda: hf.GitForCausalLM(
        hf.GitConfig(
            vision_config=dict(_VISION),
            vocab_size=VOCABULARY,
            max_position_embeddings=_LONGEST,
            **_SIZES,
            **_TOKENS,
        )
    ),
    "blip2": _blip2,
    "kosmos2": _kosmos2,
    "got-ocr2": _got_ocr2,
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
    "qwen2-audio": _qwen2_audio,
}
"""By name: function that builds the model with the initial weights of transformers."""

_SHAPES = {
    "smolvlm": (2, 3, 16, 16),
    "idefics3": (2, 3, 16, 16),
    "llava-next": (5, 3, 16, 16),
    "llava-onevision": (5, 3, 16, 16),
    "got-ocr2": (3, 32, 32),
    "qwen2-vl": (3, 16, 24),
    "qwen2.5-vl": (3, 24, 40),
    "qwen2-audio": (8, 32),
}
_FEATURES = {"kosmos2": 5, "blip2": 6, "got-ocr2": 4, "smolvlm": 8, "idefics3": 8, "qwen2-vl": 6}
_FEATURES |= {"qwen2.5-vl": 15, "qwen2-audio": 8, "llava": 16, "internvl": 4, "aya-vision": 4}
_FEATURES |= {"vipllava": 16, "cohere2-vision": 4, "llava-next": 70, "llava-onevision": 70}
_GAINS, _SEEDS = {"kosmos2": 2.5}, {"kosmos2": 46}  # with others it repeats a token


def inputs_of(name: str, batch: int, seed: int = 5) -> dict[str, Tensor]:
    """Returns the encoder's inputs of a model by name, random floats."""
    values = random_floats(batch, *_SHAPES.get(name, (3, 16, 16)), seed=seed)
    return {"input_features" if name == "qwen2-audio" else "pixel_values": values}


def template_of(name: str) -> dict[str, Tensor]:
    """Returns the values of an example that tell the template of a model."""
    if name == "git":
        return {"input_ids": torch.tensor([AFTER])}
    count = _FEATURES[name]
    ids = torch.tensor([[*BEFORE, *([PLACEHOLDER] * count), *AFTER]])
    if name == "kosmos2":
        return {"input_ids": ids, "image_embeds_position_mask": (ids == PLACEHOLDER).long()}
    if name in ("llava-next", "llava-onevision"):
        return {"input_ids": ids, "image_sizes": torch.tensor([_WHOLE_IMAGE])}
    return {"input_ids": ids}


def original(name: str) -> PreTrainedModel:
    """Returns a model whose input has an effect, in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEEDS.get(name, 0))
        model: Any = enlarge_weights(MODELS[name]())
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(_GAINS.get(name, 1.5))
    built: PreTrainedModel = model.eval()
    return built


def adapted(name: str, model: PreTrainedModel) -> FeaturesBeforeText:
    """Returns the adapter of a model, with a template."""
    result = adapt(model, {**inputs_of(name, 2), **template_of(name)})
    assert isinstance(result, FeaturesBeforeText)
    return result


def _case(name: str) -> Case:
    return Case(
        name=f"hf-{name}",
        family="vision-language",
        make=lambda: adapted(name, original(name)),
        inputs=lambda batch, size: inputs_of(name, batch),
        sizes=(0,),
        prompts=(1, 4),
        gain=1.0,
    )


CASES = {name: _case(name) for name in MODELS}
VISION_LANGUAGE = tuple(CASES.values())
