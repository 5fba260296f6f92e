"""Tests that the runtime with imported settings decodes the tokens of generate().

The model itself decodes here, by a full re-run for every token. Other tests compare the exported
graphs with the model.
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import (
    SCHEMA_VERSION,
    GraphSpec,
    Manifest,
    Precision,
    TensorSpec,
    Variant,
)
from hybrid_deploy.contract import LOGITS
from hybrid_deploy.export.huggingface.folder_job import job_from_folder
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.runtime.session.session import Session

SENTENCES = ["the quick brown fox jumps over the lazy dog", "pack my box with five jugs"] * 4
VOCABULARY, MAX_LENGTH = 80, 14


def save_tokenizer(folder: Path) -> None:
    """Trains a unigram tokenizer on SENTENCES, and saves it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=special, unk_token="<unk>"
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)


def save_model(folder: Path, kind: str, config: Any, generation: dict[str, Any]) -> Any:
    """Saves a model with seeded weights and a tokenizer, and returns the model."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)  # so that the tokens vary
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def open_session(folder: Path) -> tuple[Session, list[str]]:
    """Returns the session of a folder, with the model as its backend, and the warnings."""
    job, warnings = job_from_folder(folder)
    spec, bundle = job.spec, folder.parent / "bundle"
    bundle.mkdir()
    for name, content in spec.files.items():
        (bundle / name).write_bytes(content)
    logits = TensorSpec(LOGITS, "float", ("batch", VOCABULARY))
    graph = GraphSpec("fp32/step.onnx", (), (logits,))
    variant = Variant(Precision("fp32", "fp32"), 24, graph, graph, graph)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=spec.name,
        producer="test",
        parameters=0,
        capacity=spec.generation.max_length,
        dims={},
        preprocess=spec.preprocess,
        vocabulary=spec.vocabulary,
        generation=spec.generation,
        variants={"fp32": variant},
        golden=(),
        files={},
    )
    rerun = FullRerun(job.model, spec.generation.max_length)
    return Session(Bundle(bundle, manifest), "fp32", rerun), warnings


GENERATION = {
    "forced_bos_token_id": 0, "forced_eos_token_id": 2, "min_length": 9,
    "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[5], [9]],
    "suppress_tokens": [7, 11], "begin_suppress_tokens": [12],
}  # fmt: skip


def test_bart_with_every_setting(tmp_path: Path) -> None:
    folder = tmp_path / "bart"
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    common = {
        "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "max_length": MAX_LENGTH, "num_beams": 1, "do_sample": False,
    }  # fmt: skip
    model = save_model(folder, "BartForConditionalGeneration", config, common | GENERATION)
    session, warnings = open_session(folder)
    assert warnings == []
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    distinct = set()
    for text in ("the lazy dog", "pack my jugs over the fox", "brown"):
        encoded = loaded(text, return_tensors="pt")
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        expected = model.generate(**inputs)[0, 1:].tolist()
        (result,), _ = session.run_files([], texts=[text])
        assert list(result.tokens) == expected
        assert result.text == loaded.decode(expected, skip_special_tokens=True)
        distinct.add(result.tokens)
    assert len(distinct) > 1
    # generate() takes a prompt as decoder_input_ids
    prompt = [2, 0, 20, 21]
    expected = model.generate(**inputs, decoder_input_ids=torch.tensor([prompt]))[0, 4:].tolist()
    (result,), _ = session.run_files([], texts=["brown"], prompt=prompt[1:])
    assert list(result.tokens) == expected


def test_whisper_with_language_and_task(tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_source_positions=50, max_target_positions=20, num_mel_bins=80,
        pad_token_id=2, bos_token_id=2, eos_token_id=2, decoder_start_token_id=70,
    )  # fmt: skip
    generation = {
        "decoder_start_token_id": 70, "eos_token_id": 2, "pad_token_id": 2, "max_length": 14,
        "is_multilingual": True, "lang_to_id": {"<|en|>": 71, "<|de|>": 72},
        "task_to_id": {"transcribe": 73, "translate": 74}, "no_timestamps_token_id": 75,
        "suppress_tokens": [4, 5], "begin_suppress_tokens": [2, 6], "language": "de",
        "task": "translate", "return_timestamps": False,
    }  # fmt: skip
    model = save_model(folder, "WhisperForConditionalGeneration", config, generation)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    extractor.save_pretrained(folder)
    session, _ = open_session(folder)
    assert session.bundle.manifest.generation.start_tokens == (70, 72, 74, 75)
    samples = (8000 * np.sin(np.arange(12000) ** 1.3 / 50)).astype("<i2")
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    (result,), _ = session.run_files([path])
    signal = samples.astype(np.float32) / 32768
    features = extractor(signal, sampling_rate=16000, return_tensors="pt")
    expected = model.generate(features["input_features"])[0].tolist()
    actual = list(result.tokens)
    # Whisper's generate() leaves out the prompt and the end token
    assert [token for token in actual if token != 2] == expected
    assert len(set(actual)) > 1
