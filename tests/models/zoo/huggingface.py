"""Tiny Hugging Face models, built from configs, and their cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_floats, random_tokens

POSITIONS = 80
IMAGE = 32
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_UNTIED = {"tie_word_embeddings": False}  # tied weights make a token follow itself too often
_SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": IMAGE,
    "patch_size": 8,
}
_SWIN = {
    "image_size": [IMAGE, 2 * IMAGE],
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
    sizes = {k: v for k, v in _SIZES.items() if k.startswith(("d_model", "decoder", "max"))}
    return hf.TrOCRConfig(
        vocab_size=VOCABULARY, cross_attention_hidden_size=24, **sizes, **_TOKENS, **options
    )


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


def seq2seq(model: Any, config: Any, **options: Any) -> PreTrainedModel:
    """Returns a model with the interface of BART."""
    built: PreTrainedModel = model(
        config(vocab_size=VOCABULARY, **_SIZES, **_TOKENS, forced_eos_token_id=None, **options)
    )
    bias = getattr(built, "final_logits_bias", None)
    if bias is not None:
        bias.copy_(random_floats(*bias.shape))
    return built


def t5(**options: Any) -> PreTrainedModel:
    """Returns a tiny T5."""
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=2,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            **_TOKENS,
            **options,
        )
    )


def whisper() -> PreTrainedModel:
    """Returns a tiny Whisper."""
    sizes = {k: v for k, v in _SIZES.items() if k != "max_position_embeddings"}
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        max_source_positions=15,
        max_target_positions=POSITIONS,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **sizes,
        **_TOKENS,
    )
    return hf.WhisperForConditionalGeneration(config)


def speech_to_text() -> PreTrainedModel:
    """Returns a tiny Speech2Text."""
    sizes = {k: v for k, v in _SIZES.items() if k != "max_position_embeddings"}
    config = hf.Speech2TextConfig(
        vocab_size=VOCABULARY,
        input_feat_per_channel=8,
        input_channels=1,
        conv_channels=16,
        max_source_positions=64,
        max_target_positions=POSITIONS,
        **_UNTIED,
        **sizes,
        **_TOKENS,
    )
    return hf.Speech2TextForConditionalGeneration(config)


def moonshine() -> PreTrainedModel:
    """Returns a tiny Moonshine."""
    config = hf.MoonshineConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        pad_head_dim_to_multiple_of=12,
        **_TOKENS,
    )
    return hf.MoonshineForConditionalGeneration(config)


def pix2struct() -> PreTrainedModel:
    """Returns a tiny Pix2Struct."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        **_TOKENS,
    }
    vision = {
        "hidden_size": 32,
        "patch_embed_hidden_size": 12,
        "d_ff": 48,
        "d_kv": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "seq_len": 16,
    }
    config = hf.Pix2StructConfig(text_config=text, vision_config=vision)
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
    text = {"vocab_size": VOCABULARY, "model_type": "bart", **_SIZES, **_TOKENS}
    config = hf.Florence2Config(vision_config=vision, text_config=text, image_token_id=96)
    return hf.Florence2ForConditionalGeneration(config)


def blip() -> PreTrainedModel:
    """Returns a tiny BLIP captioner."""
    text = {**_BERT, "encoder_hidden_size": 24, "projection_dim": 16, "sep_token_id": 2}
    vision = {**_VIT, "projection_dim": 16}
    return hf.BlipForConditionalGeneration(hf.BlipConfig(text_config=text, vision_config=vision))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "vit-trocr": lambda: image_to_text(hf.ViTConfig(**_VIT), trocr_config()),
    "deit-trocr-sinusoidal": lambda: image_to_text(
        hf.DeiTConfig(**_VIT),
        trocr_config(use_learned_position_embeddings=False, scale_embedding=True, **_UNTIED),
    ),
    "beit-gpt2": lambda: image_to_text(
        hf.BeitConfig(**_VIT, use_relative_position_bias=True), gpt2_config()
    ),
    "swin-bert": lambda: image_to_text(hf.SwinConfig(**_SWIN), hf.BertConfig(**_BERT, **_UNTIED)),
    "vit-roberta": lambda: image_to_text(
        hf.ViTConfig(**_VIT),
        hf.RobertaConfig(**{**_BERT, **_UNTIED, "max_position_embeddings": 90}),
    ),
    "donut": lambda: image_to_text(
        hf.DonutSwinConfig(**_SWIN),
        # generate() makes encoder_layers caches, so both sides need equally many layers
        hf.MBartConfig(
            vocab_size=VOCABULARY,
            scale_embedding=True,
            **{**_SIZES, "encoder_layers": 2},
            **_TOKENS,
        ),
    ),
    "whisper": whisper,
    "speech-to-text": speech_to_text,
    "moonshine": moonshine,
    "bart": lambda: seq2seq(hf.BartForConditionalGeneration, hf.BartConfig),
    "mbart": lambda: seq2seq(
        hf.MBartForConditionalGeneration, hf.MBartConfig, scale_embedding=True
    ),
    "marian": lambda: seq2seq(hf.MarianMTModel, hf.MarianConfig, scale_embedding=True),
    "pegasus": lambda: seq2seq(hf.PegasusForConditionalGeneration, hf.PegasusConfig),
    "t5": t5,
    "t5-gated": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "pix2struct": pix2struct,
    "florence-2": florence2,
    "blip": blip,
}
"""By name: function that builds the model with the initial weights of transformers."""


def _padding(batch: int, size: int, unit: int = 1) -> Tensor:
    """Returns a mask (batch, size) int64: the last row is full, each earlier one shorter."""
    lengths = torch.tensor([max(2, size // unit - 2 * (batch - 1 - row)) for row in range(batch)])
    return (torch.arange(size)[None] < unit * lengths[:, None]).long()


def _image(batch: int, size: int) -> dict[str, Tensor]:
    return {"pixel_values": random_floats(batch, 3, IMAGE, size)}


def _whisper(batch: int, size: int) -> dict[str, Tensor]:
    return {"input_features": random_floats(batch, 8, size)}


def _features(batch: int, size: int) -> dict[str, Tensor]:
    mask = _padding(batch, size, 4)
    return {"input_features": random_floats(batch, size, 8), "attention_mask": mask}


def _audio(batch: int, size: int) -> dict[str, Tensor]:
    mask = _padding(batch, size, 1000)
    return {"input_values": random_floats(batch, size), "attention_mask": mask}


def _text(batch: int, size: int) -> dict[str, Tensor]:
    mask = _padding(batch, size)
    return {"input_ids": random_tokens(VOCABULARY, batch, size) * mask, "attention_mask": mask}


def _patches(batch: int, size: int) -> dict[str, Tensor]:
    row_and_column = torch.stack([torch.arange(size) // 4 + 1, torch.arange(size) % 4 + 1], -1)
    patches = [row_and_column.expand(batch, -1, -1).float(), random_floats(batch, size, 12)]
    mask = _padding(batch, size)
    return {"flattened_patches": torch.cat(patches, -1) * mask[..., None], "attention_mask": mask}


def _prompted(batch: int, size: int) -> dict[str, Tensor]:
    placeholders = torch.ones(batch, 17, dtype=torch.int64)
    mask = _padding(batch, size)
    prompt = random_tokens(VOCABULARY - 1, batch, size) * mask
    return {
        "pixel_values": random_floats(batch, 3, IMAGE, IMAGE),
        "input_ids": torch.cat([placeholders * 96, prompt], 1),
        "attention_mask": torch.cat([placeholders, mask], 1),
    }


Axes = Mapping[str, tuple[tuple[int, str, int, int], ...]]


def _axes(name: str, dim: str, largest: int) -> Axes:
    axis = ((1, dim, 4, largest),)
    return {name: axis, "attention_mask": axis}


_TEXT_INPUTS = (_text, (8, 13), _axes("input_ids", "words", 32))
_INPUTS: dict[str, tuple[Callable[[int, int], dict[str, Tensor]], tuple[int, ...], Axes]] = {
    "bart": _TEXT_INPUTS,
    "donut": (_image, (2 * IMAGE,), {}),
    "florence-2": (_prompted, (6, 9), _axes("input_ids", "words", 48)),
    "marian": _TEXT_INPUTS,
    "mbart": _TEXT_INPUTS,
    "moonshine": (_audio, (9000,), {}),
    "pegasus": _TEXT_INPUTS,
    "pix2struct": (_patches, (16, 11), _axes("flattened_patches", "patches", 16)),
    "speech-to-text": (_features, (40, 24), _axes("input_features", "frames", 64)),
    "swin-bert": (_image, (2 * IMAGE,), {}),
    "t5": _TEXT_INPUTS,
    "t5-gated": _TEXT_INPUTS,
    "whisper": (_whisper, (30,), {}),
}
_GAINS_AND_SEEDS = {
    "bart": (1.25, 4),
    "beit-gpt2": (1.5, 0),
    "donut": (1.5, 5),
    "florence-2": (1.25, 3),
    "marian": (2.5, 91),
    "mbart": (2.5, 0),
    "pix2struct": (1.0, 0),
    "swin-bert": (1.0, 1),
    "t5": (2.0, 11),
    "t5-gated": (1.5, 0),
}
"""Gain and seed with which tokens vary, and float32 rounding stays near 1e-5 in PyTorch."""


@torch.no_grad()
def enlarge_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Enlarges a model's matrices: with initial weights the input has almost no effect."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (parameter.numel() / len(parameter)) ** -0.5)
    return model


def _case(name: str) -> Case:
    inputs, sizes, dynamic = _INPUTS.get(name, (_image, (IMAGE,), {}))
    gain, seed = _GAINS_AND_SEEDS.get(name, (2.0, 0))
    return Case(
        name=f"hf-{name}",
        family="huggingface",
        make=lambda: adapt(enlarge_weights(MODELS[name]())),
        inputs=inputs,
        sizes=sizes,
        dynamic=dynamic,
        gain=gain,
        seed=seed,
    )


CASES = {name: _case(name) for name in MODELS}
HUGGINGFACE = tuple(CASES.values())


def model_and_adapter(name: str) -> tuple[PreTrainedModel, HuggingFaceModel]:
    """Returns a model with the weights of its case, and its adapter, which shares them."""
    originals: list[PreTrainedModel] = []
    adapters: list[HuggingFaceModel] = []

    def make() -> HuggingFaceModel:
        originals.append(enlarge_weights(MODELS[name]()))
        adapters.append(adapt(originals[0]))
        return adapters[0]

    dataclasses.replace(CASES[name], make=make).model()
    return originals[0].eval(), adapters[0]
