"""Tiny models of transformers that read a text."""

from __future__ import annotations

from typing import Any

import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import random_tokens
from tests.models.zoo.transformers.base import (
    BART,
    BERT,
    LAYERS,
    POSITIONS,
    T5,
    TOKENS,
    UNTIED,
    Inputs,
    Models,
    Tiny,
    padding,
    seq2seq,
)


def t5(model: Any, config: Any, **options: Any) -> PreTrainedModel:
    """Returns a tiny model with the interface of T5."""
    built: PreTrainedModel = model(config(d_model=32, num_decoder_layers=2, **T5, **options))
    return built


def t5gemma() -> PreTrainedModel:
    """Returns a tiny T5Gemma whose first layers see a window of 6 tokens."""
    parts = [
        T5GemmaModuleConfig(
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=6,
            query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention"],
            attn_logit_softcapping=2.0,  # so low that the cap has an effect
            **BERT,
        )
        for _ in range(2)
    ]
    config = hf.T5GemmaConfig(
        encoder=parts[0], decoder=parts[1], vocab_size=VOCABULARY, **UNTIED, **TOKENS
    )
    return hf.T5GemmaForConditionalGeneration(config)


def switch(capacity: int = 8) -> PreTrainedModel:
    """Returns a tiny Switch; with a small capacity its encoder drops tokens."""
    return t5(
        hf.SwitchTransformersForConditionalGeneration,
        hf.SwitchTransformersConfig,
        num_experts=4,
        expert_capacity=capacity,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )


def fsmt() -> PreTrainedModel:
    """Returns a tiny FSMT, with a vocabulary for each side."""
    sizes = {k: v for k, v in BART.items() if k != "vocab_size"}
    config = hf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=VOCABULARY, **UNTIED, **sizes
    )
    return hf.FSMTForConditionalGeneration(config)


def bert_to_bert() -> PreTrainedModel:
    """Returns a tiny model of a BERT encoder and a BERT decoder."""
    decoder = hf.BertConfig(is_decoder=True, add_cross_attention=True, **BERT, **UNTIED)
    config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.BertConfig(**BERT), decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.EncoderDecoderModel(config=config)


SEAMLESS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "max_position_embeddings": POSITIONS,
    "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 48,
    "feature_projection_input_dim": 16,
    **UNTIED,
    **LAYERS,
    **TOKENS,
}
"""Sizes of SeamlessM4T, which reads texts or speech."""


def _text(batch: int, size: int) -> dict[str, Tensor]:
    mask = padding(batch, size)
    return {"input_ids": random_tokens(VOCABULARY, batch, size) * mask, "attention_mask": mask}


_INPUTS = Inputs(_text, (8, 13, 31), ("words", 4, 40), "input_ids")

TEXTS: Models = {
    "bart": Tiny(lambda: seq2seq(hf.BartForConditionalGeneration, hf.BartConfig), _INPUTS, 3.0, 8),
    "bert-to-bert": Tiny(bert_to_bert, _INPUTS, 1.25, 52),
    "bigbird-pegasus": Tiny(
        lambda: seq2seq(
            hf.BigBirdPegasusForConditionalGeneration,
            hf.BigBirdPegasusConfig,
            attention_type="original_full",
        ),
        _INPUTS,
        4.0,
    ),
    "blenderbot": Tiny(
        lambda: seq2seq(hf.BlenderbotForConditionalGeneration, hf.BlenderbotConfig), _INPUTS
    ),
    "blenderbot-small": Tiny(
        lambda: seq2seq(hf.BlenderbotSmallForConditionalGeneration, hf.BlenderbotSmallConfig),
        _INPUTS,
        2.6,
        6,
    ),
    "fsmt": Tiny(fsmt, _INPUTS, 3.4, 71),
    "longt5": Tiny(
        lambda: t5(
            hf.LongT5ForConditionalGeneration,
            hf.LongT5Config,
            encoder_attention_type="local",
            local_radius=7,
        ),
        _INPUTS,
        1.5,
        3,
    ),
    "longt5-global": Tiny(
        lambda: t5(
            hf.LongT5ForConditionalGeneration,
            hf.LongT5Config,
            encoder_attention_type="transient-global",
            local_radius=7,
            global_block_size=4,
        ),
        _INPUTS,
        1.5,
    ),
    "m2m100": Tiny(
        lambda: seq2seq(hf.M2M100ForConditionalGeneration, hf.M2M100Config, **UNTIED), _INPUTS
    ),
    "marian": Tiny(
        lambda: seq2seq(hf.MarianMTModel, hf.MarianConfig, scale_embedding=True), _INPUTS, 3.25, 6
    ),
    "mbart": Tiny(
        lambda: seq2seq(hf.MBartForConditionalGeneration, hf.MBartConfig, scale_embedding=True),
        _INPUTS,
        2.5,
    ),
    "mt5": Tiny(lambda: t5(hf.MT5ForConditionalGeneration, hf.MT5Config, **UNTIED), _INPUTS, 1.5),
    "mvp": Tiny(lambda: seq2seq(hf.MvpForConditionalGeneration, hf.MvpConfig), _INPUTS, 2.6, 8),
    "pegasus": Tiny(lambda: seq2seq(hf.PegasusForConditionalGeneration, hf.PegasusConfig), _INPUTS),
    "pegasus-x": Tiny(
        lambda: seq2seq(
            hf.PegasusXForConditionalGeneration,
            hf.PegasusXConfig,
            block_size=8,
            num_global_tokens=4,
            encoder_layers=2,  # the second one staggers its blocks
        ),
        _INPUTS,
        2.5,
        6,
    ),
    "plbart": Tiny(
        lambda: seq2seq(hf.PLBartForConditionalGeneration, hf.PLBartConfig, **UNTIED),
        _INPUTS,
        2.5,
        67,
    ),
    "seamless-text": Tiny(
        lambda: hf.SeamlessM4TForTextToText(hf.SeamlessM4TConfig(**SEAMLESS)), _INPUTS, 1.5
    ),
    "seamless-v2-text": Tiny(
        lambda: hf.SeamlessM4Tv2ForTextToText(hf.SeamlessM4Tv2Config(**SEAMLESS)), _INPUTS, 1.5
    ),
    "switch": Tiny(switch, _INPUTS, 1.5, 5),
    "t5": Tiny(lambda: t5(hf.T5ForConditionalGeneration, hf.T5Config), _INPUTS, 2.0, 1),
    "t5-gated": Tiny(
        lambda: t5(
            hf.T5ForConditionalGeneration, hf.T5Config, feed_forward_proj="gated-gelu", **UNTIED
        ),
        _INPUTS,
        1.5,
    ),
    "t5gemma": Tiny(t5gemma, _INPUTS, 1.5),
    "umt5": Tiny(
        lambda: t5(hf.UMT5ForConditionalGeneration, hf.UMT5Config, **UNTIED), _INPUTS, 1.5, 1
    ),
}
