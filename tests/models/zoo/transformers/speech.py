"""Tiny models of transformers that read sound: waveforms, or features of their frames."""

from __future__ import annotations

import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import random_floats
from tests.models.zoo.transformers.base import (
    BERT,
    LAYERS,
    POSITIONS,
    TOKENS,
    UNTIED,
    Inputs,
    Models,
    Tiny,
    padding,
)
from tests.models.zoo.transformers.texts import SEAMLESS

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
_PARAKEET = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_mel_bins": 16,
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "scale_input": False,
}


def whisper() -> PreTrainedModel:
    """Returns a tiny Whisper."""
    config = hf.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        num_mel_bins=8,
        max_source_positions=15,
        max_target_positions=POSITIONS,
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **LAYERS,
        **TOKENS,
    )
    return hf.WhisperForConditionalGeneration(config)


def speech_to_text() -> PreTrainedModel:
    """Returns a tiny Speech2Text."""
    config = hf.Speech2TextConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        input_feat_per_channel=8,
        input_channels=1,
        conv_channels=16,
        max_source_positions=64,
        max_target_positions=POSITIONS,
        **UNTIED,
        **LAYERS,
        **TOKENS,
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
        **TOKENS,
    )
    return hf.MoonshineForConditionalGeneration(config)


def moonshine_streaming() -> PreTrainedModel:
    """Returns a tiny streaming Moonshine whose encoder sees a window of frames."""
    encoder = {
        "hidden_size": 24,  # unlike the decoder's, so that the memory is projected
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "sliding_windows": [[6, 2], [6, 0]],
        "max_position_embeddings": 100,
    }
    config = hf.MoonshineStreamingConfig(
        encoder_config=encoder, decoder_start_token_id=1, num_key_value_heads=2, **BERT
    )
    return hf.MoonshineStreamingForConditionalGeneration(config)


def canary() -> PreTrainedModel:
    """Returns a tiny Canary."""
    decoder = {**BERT, "num_key_value_heads": 2, "head_dim": 16}
    config = hf.CanaryConfig(
        encoder_config={**_PARAKEET, "model_type": "parakeet_encoder", "hidden_size": 32},
        decoder_config=decoder,
        vocab_size=VOCABULARY,
        **UNTIED,
        **TOKENS,
    )
    return hf.CanaryForConditionalGeneration(config)


def cohere_asr() -> PreTrainedModel:
    """Returns a tiny CohereAsr."""
    config = hf.CohereAsrConfig(
        encoder_config={**_PARAKEET, "model_type": "parakeet_encoder"},
        decoder_start_token_id=1,
        **BERT,
    )
    return hf.CohereAsrForConditionalGeneration(config)


def speecht5() -> PreTrainedModel:
    """Returns a tiny SpeechT5 from speech to text."""
    config = hf.SpeechT5Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        encoder_max_relative_position=20,
        conv_dim=[16, 16],
        conv_stride=[5, 4],
        conv_kernel=[10, 8],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        max_speech_positions=400,
        max_text_positions=POSITIONS,
        **LAYERS,
        **TOKENS,
    )
    return hf.SpeechT5ForSpeechToText(config)


def speech_encoder_decoder() -> PreTrainedModel:
    """Returns a tiny model of a wav2vec 2.0 encoder and a BERT decoder."""
    decoder = hf.BertConfig(
        is_decoder=True,
        add_cross_attention=True,
        **{**BERT, "hidden_size": 40},  # unlike the encoder's, so that the memory is projected
        **UNTIED,
    )
    config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.Wav2Vec2Config(**_WAV2VEC2), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return hf.SpeechEncoderDecoderModel(config=config)


def _features(width: int) -> Inputs:
    """Returns inputs of masked features (batch, frames, width)."""

    def make(batch: int, size: int) -> dict[str, Tensor]:
        mask = padding(batch, size, 8)
        features = random_floats(batch, size, width) * mask.unsqueeze(-1)
        return {"input_features": features, "attention_mask": mask}

    return Inputs(make, (40, 33, 24), ("frames", 20, 64), "input_features")


def _samples(batch: int, size: int) -> dict[str, Tensor]:
    mask = padding(batch, size, 400)
    return {"input_values": random_floats(batch, size) * mask, "attention_mask": mask}


def _audio(batch: int, size: int) -> dict[str, Tensor]:
    mask = padding(batch, size, 1000)
    return {"input_values": random_floats(batch, size), "attention_mask": mask}


def _whisper(batch: int, size: int) -> dict[str, Tensor]:
    return {"input_features": random_floats(batch, 8, size)}


_SAMPLES = Inputs(_samples, (3000, 2345), ("samples", 1500, 6000), "input_values")
_WHOLE_FRAMES = Inputs(_samples, (3200, 2400), ("samples", 1600, 6400), "input_values")
"""Sizes that the original takes; its processor pads others."""

SPEECH: Models = {
    "canary": Tiny(canary, _features(16), 1.5),
    "cohere-asr": Tiny(cohere_asr, _features(16), 1.5),
    "moonshine": Tiny(moonshine, Inputs(_audio, (9000,)), 2.0, 1),
    "moonshine-streaming": Tiny(moonshine_streaming, _WHOLE_FRAMES, 1.5),
    "seamless-speech": Tiny(
        lambda: hf.SeamlessM4TForSpeechToText(hf.SeamlessM4TConfig(**SEAMLESS)),
        _features(16),
        1.5,
        2,
    ),
    "seamless-v2-speech": Tiny(
        lambda: hf.SeamlessM4Tv2ForSpeechToText(hf.SeamlessM4Tv2Config(**SEAMLESS)),
        _features(16),
        1.5,
    ),
    "speech-encoder-decoder": Tiny(speech_encoder_decoder, _SAMPLES, 2.0, 47),
    "speech-to-text": Tiny(speech_to_text, _features(8)),
    "speecht5": Tiny(speecht5, _SAMPLES, 2.5, 24),
    "whisper": Tiny(whisper, Inputs(_whisper, (30,))),
}
