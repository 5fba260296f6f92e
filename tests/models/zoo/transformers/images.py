"""Tiny models of transformers that read an image."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import random_floats, random_tokens
from tests.models.zoo.transformers.base import (
    BART,
    BERT,
    POSITIONS,
    T5,
    UNTIED,
    Inputs,
    Models,
    Tiny,
    padding,
)

_SIDE = 32
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": _SIDE,
    "patch_size": 8,
}
_SWIN = {
    "image_size": [_SIDE, 2 * _SIDE],
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}


def image_to_text(encoder: Any, decoder: Any) -> PreTrainedModel:
    """Returns a model of an image encoder and a text decoder, given by their configs."""
    for name, value in {"is_decoder": True, "add_cross_attention": True}.items():
        setattr(decoder, name, value)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.VisionEncoderDecoderModel(config=config)


def trocr_config(**options: Any) -> Any:
    """Returns the config of a TrOCR decoder."""
    sizes = {k: v for k, v in BART.items() if not k.startswith(("encoder", "forced"))}
    return hf.TrOCRConfig(cross_attention_hidden_size=24, **sizes, **options)


def gpt2_config() -> Any:
    """Returns the config of a GPT-2 decoder."""
    return hf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def donut() -> PreTrainedModel:
    """Returns a tiny Donut, which Nougat is too."""
    # generate() makes encoder_layers caches, so both sides need equally many layers
    sizes = {k: v for k, v in BART.items() if k != "forced_eos_token_id"} | {"encoder_layers": 2}
    return image_to_text(hf.DonutSwinConfig(**_SWIN), hf.MBartConfig(scale_embedding=True, **sizes))


def pix2struct() -> PreTrainedModel:
    """Returns a tiny Pix2Struct."""
    vision = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 12,
        "d_ff": 48,
        "d_kv": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "seq_len": 16,
    }
    config = hf.Pix2StructConfig(text_config={**T5, "hidden_size": 32}, vision_config=vision)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return hf.Pix2StructForConditionalGeneration(config)


def florence2() -> PreTrainedModel:
    """Returns a tiny Florence-2."""
    vision = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 32,
        "max_temporal_embeddings": 4,
        "max_position_embeddings": 4,
    }
    text = {k: v for k, v in BART.items() if k != "forced_eos_token_id"} | {"model_type": "bart"}
    config = hf.Florence2Config(vision_config=vision, text_config=text, image_token_id=96)
    return hf.Florence2ForConditionalGeneration(config)


def blip() -> PreTrainedModel:
    """Returns a tiny BLIP captioner."""
    text = {**BERT, "encoder_hidden_size": 24, "projection_dim": 16, "sep_token_id": 2}
    vision = {**_VIT, "projection_dim": 16}
    return hf.BlipForConditionalGeneration(hf.BlipConfig(text_config=text, vision_config=vision))


def pp_formulanet() -> PreTrainedModel:
    """Returns a tiny PP-FormulaNet."""
    vision = {
        "hidden_size": 24,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 2 * _SIDE,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        "post_conv_in_channels": 16,
        "post_conv_mid_channels": 20,
        "post_conv_out_channels": 24,
        "decoder_hidden_size": 32,
    }
    # generate() makes encoder_layers caches, so both sides need equally many layers
    text = BART | {"encoder_layers": 2}
    config = hf.PPFormulaNetConfig(vision_config=vision, text_config=text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return hf.PPFormulaNetForConditionalGeneration(config)


def _image(batch: int, size: int) -> dict[str, Tensor]:
    return {"pixel_values": random_floats(batch, 3, _SIDE, size)}


def _square(batch: int, size: int) -> dict[str, Tensor]:
    return {"pixel_values": random_floats(batch, 3, size, size)}


def _patches(batch: int, size: int) -> dict[str, Tensor]:
    row_and_column = torch.stack([torch.arange(size) // 4 + 1, torch.arange(size) % 4 + 1], -1)
    patches = [row_and_column.expand(batch, -1, -1).float(), random_floats(batch, size, 12)]
    mask = padding(batch, size)
    return {"flattened_patches": torch.cat(patches, -1) * mask[..., None], "attention_mask": mask}


def _prompted(batch: int, size: int) -> dict[str, Tensor]:
    placeholders = torch.ones(batch, 17, dtype=torch.int64)
    mask = padding(batch, size)
    prompt = random_tokens(VOCABULARY - 1, batch, size) * mask
    return {
        "pixel_values": random_floats(batch, 3, _SIDE, _SIDE),
        "input_ids": torch.cat([placeholders * 96, prompt], 1),
        "attention_mask": torch.cat([placeholders, mask], 1),
    }


_SMALL, _WIDE = Inputs(_image, (_SIDE,)), Inputs(_image, (2 * _SIDE,))

IMAGES: Models = {
    "vit-trocr": Tiny(lambda: image_to_text(hf.ViTConfig(**_VIT), trocr_config()), _SMALL),
    "deit-trocr-sinusoidal": Tiny(
        lambda: image_to_text(
            hf.DeiTConfig(**_VIT),
            trocr_config(use_learned_position_embeddings=False, scale_embedding=True, **UNTIED),
        ),
        _SMALL,
    ),
    "beit-gpt2": Tiny(
        lambda: image_to_text(
            hf.BeitConfig(**_VIT, use_relative_position_bias=True), gpt2_config()
        ),
        _SMALL,
        1.5,
    ),
    "swin-bert": Tiny(
        lambda: image_to_text(hf.SwinConfig(**_SWIN), hf.BertConfig(**BERT, **UNTIED)),
        _WIDE,
        1.0,
        1,
    ),
    "vit-roberta": Tiny(
        lambda: image_to_text(
            hf.ViTConfig(**_VIT),
            hf.RobertaConfig(**{**BERT, **UNTIED, "max_position_embeddings": 90}),
        ),
        _SMALL,
    ),
    "donut": Tiny(donut, _WIDE, 1.5, 5),
    "pix2struct": Tiny(
        pix2struct,
        Inputs(_patches, (16, 11), ("patches", 4, 16), "flattened_patches"),
        1.0,
    ),
    "florence-2": Tiny(
        florence2, Inputs(_prompted, (6, 9), ("words", 4, 48), "input_ids"), 1.25, 3
    ),
    "blip": Tiny(blip, _SMALL),
    "pp-formulanet": Tiny(pp_formulanet, Inputs(_square, (2 * _SIDE,)), 1.25, 4),
}
