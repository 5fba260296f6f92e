"""More tiny Hugging Face models: experts, capped scores, blocks of text, and encoders of speech."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_floats, random_tokens
from tests.models.zoo.huggingface import POSITIONS, enlarge_weights

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": POSITIONS,
    "forced_eos_token_id": None,
    **_TOKENS,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    **_TOKENS,
}
_WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_SEAMLESS = {
    **{k: v for k, v in _BART.items() if k not in ("d_model", "forced_eos_token_id")},
    "hidden_size": 32,
    "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 48,
    "feature_projection_input_dim": 16,
    "tie_word_embeddings": False,
}


def t5gemma() -> PreTrainedModel:
    """Returns a tiny T5Gemma whose first layers see a window of 6 tokens."""
    parts = [
        T5GemmaModuleConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=POSITIONS,
            sliding_window=6,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention"],
            attn_logit_softcapping=2.0,  # so low that the cap has an effect
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        for _ in range(2)
    ]
    config = hf.T5GemmaConfig(
        encoder=parts[0],
        decoder=parts[1],
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        **_TOKENS,
    )
    return hf.T5GemmaForConditionalGeneration(config)


def speech_encoder_decoder() -> PreTrainedModel:
    """Returns a tiny model of a wav2vec 2.0 encoder and a BERT decoder."""
    decoder = hf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=40,  # unlike the encoder's, so that the memory is projected
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        is_decoder=True,
        add_cross_attention=True,
        tie_word_embeddings=False,
    )
    config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.Wav2Vec2Config(**_WAV2VEC2), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.SpeechEncoderDecoderModel(config=config)


def switch(capacity: int = 8) -> PreTrainedModel:
    """Returns a tiny Switch; with a small capacity its encoder drops tokens."""
    config = hf.SwitchTransformersConfig(
        **_T5,
        num_experts=4,
        expert_capacity=capacity,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    return hf.SwitchTransformersForConditionalGeneration(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "umt5": lambda: hf.UMT5ForConditionalGeneration(
        hf.UMT5Config(**_T5, tie_word_embeddings=False)
    ),
    "switch": switch,
    "t5gemma": t5gemma,
    "pegasus-x": lambda: hf.PegasusXForConditionalGeneration(
        hf.PegasusXConfig(**_BART, block_size=8, num_global_tokens=4)
    ),
    "longt5": lambda: hf.LongT5ForConditionalGeneration(
        hf.LongT5Config(**_T5, encoder_attention_type="local", local_radius=7)
    ),
    "bigbird-pegasus": lambda: hf.BigBirdPegasusForConditionalGeneration(
        hf.BigBirdPegasusConfig(**_BART, attention_type="original_full")
    ),
    "seamless-text": lambda: hf.SeamlessM4TForTextToText(hf.SeamlessM4TConfig(**_SEAMLESS)),
    "seamless-speech": lambda: hf.SeamlessM4Tv2ForSpeechToText(hf.SeamlessM4Tv2Config(**_SEAMLESS)),
    "speech-encoder-decoder": speech_encoder_decoder,
}
"""By name: function that builds the model with the initial weights of transformers."""


def _mask(batch: int, size: int, unit: int) -> Tensor:
    """Returns a mask (batch, size) int64: the last row is full, each earlier one shorter."""
    lengths = torch.tensor([size - unit * (batch - 1 - row) for row in range(batch)])
    return (torch.arange(size)[None] < lengths[:, None]).long()


def _text(batch: int, size: int) -> dict[str, Tensor]:
    mask = _mask(batch, size, 2)
    return {"input_ids": random_tokens(VOCABULARY, batch, size) * mask, "attention_mask": mask}


def _frames(batch: int, size: int) -> dict[str, Tensor]:
    features = random_floats(batch, size, 16)
    return {"input_features": features, "attention_mask": _mask(batch, size, 8)}


def _samples(batch: int, size: int) -> dict[str, Tensor]:
    mask = _mask(batch, size, 400)
    return {"input_values": random_floats(batch, size) * mask, "attention_mask": mask}


_Inputs = tuple[Callable[[int, int], dict[str, Tensor]], str, tuple[str, int, int], tuple[int, ...]]
_TEXT: _Inputs = (_text, "input_ids", ("words", 7, 40), (16, 11, 37))
_INPUTS: dict[str, _Inputs] = {
    "seamless-speech": (_frames, "input_features", ("frames", 20, 64), (40, 33)),
    "speech-encoder-decoder": (_samples, "input_values", ("samples", 1500, 6000), (3000, 2345)),
}
_GAINS_AND_SEEDS = {
    "bigbird-pegasus": (4.0, 2),
    "pegasus-x": (2.5, 0),
    "speech-encoder-decoder": (2.5, 0),
    "switch": (1.5, 3),
    "umt5": (1.5, 1),
}
"""Gain and seed with which tokens vary, and float32 rounding stays small in PyTorch."""


def _case(name: str) -> Case:
    inputs, first, (dim, smallest, largest), sizes = _INPUTS.get(name, _TEXT)
    gain, seed = _GAINS_AND_SEEDS.get(name, (1.5, 0))
    axis = ((1, dim, smallest, largest),)
    return Case(
        name=f"hf-{name}",
        family="huggingface-more",
        make=lambda: adapt(enlarge_weights(MODELS[name]())),
        inputs=inputs,
        sizes=sizes,
        dynamic={first: axis, "attention_mask": axis},
        gain=gain,
        seed=seed,
    )


CASES = {name: _case(name) for name in MODELS}
HUGGINGFACE_MORE = tuple(CASES.values())


def model_and_adapter(name: str) -> tuple[PreTrainedModel, HuggingFaceModel]:
    """Returns a model with the weights of its case, and its adapter, which shares them."""
    originals: list[Any] = []

    def make() -> HuggingFaceModel:
        originals.append(enlarge_weights(MODELS[name]()))
        originals.append(adapt(originals[0]))
        adapted: HuggingFaceModel = originals[1]
        return adapted

    dataclasses.replace(CASES[name], make=make).model()
    return originals[0].eval(), originals[1]
