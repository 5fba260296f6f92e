"""Writes the models of the `whisper` and `trocr` workloads as Hugging Face folders.

The weights are random and seeded. The end token's row of the output projection is zero: its logit
is never the largest of tens of thousands, so all contenders generate the same number of tokens.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from transformers import (
    DeiTConfig,
    GenerationConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.benchmarks.cpu.contender import AUDIO, INPUT, Job
from tests.benchmarks.cpu.plain_model import randomize_biases, write_picture
from tests.benchmarks.cpu.whisper_tokenizer import TOKENS, write_tokenizer
from tests.benchmarks.cpu.workloads import WHISPER_END as END

_MEL_BINS, _SAMPLES = 80, 480_000  # 30 s at 16 kHz
_TROCR_END, _TROCR_TOKENS = 2, 64_044
_PICTURE = (1, 3, 384, 384)


def write_whisper(job: Job) -> None:
    """Writes a random model with the shape of Whisper tiny, a random sound, and its features."""
    torch.manual_seed(1)
    config = WhisperConfig(
        vocab_size=TOKENS, num_mel_bins=_MEL_BINS, d_model=384, encoder_layers=4, decoder_layers=4,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_ffn_dim=1536, max_source_positions=1500, max_target_positions=448,
        pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=END + 1,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    decoder = model.model.decoder
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("fc1.weight", "fc2.weight", "proj.weight")):
                parameter.mul_(3)  # otherwise every token is the same
        randomize_biases(model)
        decoder.embed_positions.weight.normal_(0, 0.2)
        decoder.embed_tokens.weight[END:] = 0
    languages = write_tokenizer(job.model)
    model.generation_config = GenerationConfig(
        pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=END + 1,
        max_length=448, is_multilingual=True, lang_to_id=languages,
        task_to_id={"transcribe": 50359, "translate": 50358}, no_timestamps_token_id=50363,
        prev_sot_token_id=50361, max_initial_timestamp_index=50, return_timestamps=False,
        suppress_tokens=[END], begin_suppress_tokens=[END],
    )  # fmt: skip
    model.save_pretrained(job.model)
    extractor = WhisperFeatureExtractor(feature_size=_MEL_BINS)
    extractor.save_pretrained(job.model)
    sound = (np.random.default_rng(0).standard_normal(_SAMPLES) * 0.1).astype(np.float32)
    features = extractor(sound, sampling_rate=16_000, return_tensors="np").input_features
    np.savez(job.inputs, **{INPUT: features.astype(np.float32), AUDIO: sound})


def write_trocr(job: Job) -> None:
    """Writes a random model with the shape of TrOCR small, and a random picture."""
    torch.manual_seed(2)
    encoder = DeiTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        image_size=384, patch_size=16,
    )  # fmt: skip
    decoder = TrOCRConfig(
        vocab_size=_TROCR_TOKENS, d_model=256, decoder_layers=6, decoder_attention_heads=8,
        decoder_ffn_dim=1024, max_position_embeddings=512, activation_function="relu",
        cross_attention_hidden_size=384, scale_embedding=True,
        use_learned_position_embeddings=True, layernorm_embedding=True, tie_word_embeddings=False,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.eos_token_id = _TROCR_END
    config.pad_token_id, config.tie_word_embeddings = 1, False
    model = VisionEncoderDecoderModel(config).eval()
    with torch.no_grad():
        randomize_biases(model)
        model.decoder.output_projection.weight[_TROCR_END] = 0
        model.decoder.model.decoder.embed_positions.weight.normal_(0, 1)
    model.generation_config = GenerationConfig(
        pad_token_id=1, bos_token_id=0, eos_token_id=_TROCR_END,
        decoder_start_token_id=_TROCR_END, max_length=512,
    )  # fmt: skip
    model.save_pretrained(job.model)
    processor = {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": True,
        "size": {"height": 384, "width": 384},
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    path = job.model / "preprocessor_config.json"
    path.write_text(json.dumps(processor), encoding="utf-8")
    write_picture(job, _PICTURE)
