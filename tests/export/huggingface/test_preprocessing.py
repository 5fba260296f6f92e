"""Tests the encoder inputs and the tokenizer that are imported from a Hugging Face folder."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from hybrid_deploy.bundle.input_specs import (
    AudioInput,
    FilterBank,
    LogMel,
    PatchesInput,
    PixelsInput,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import Tokenizer
from hybrid_deploy.bundle.pixel_steps import AlignLongAxis, CropMargin, Resize
from hybrid_deploy.errors import InputError, UnsupportedModelError
from hybrid_deploy.export.huggingface.config import ImportedSettings, import_settings
from hybrid_deploy.runtime.preprocess.prepare import prepare
from hybrid_deploy.runtime.tokenizer import text_of, tokens_of
from tests.closeness import assert_close_in_float32
from tests.export.huggingface.saved_folders import (
    save_json,
    save_tokenizer,
    save_whisper,
    train_pieces,
)

TEXTS = ["the lazy dog", "  judge   my vow, please!  ", "five dozen Dogs? I don't know.", "zebra"]


def write_files(folder: Path, settings: ImportedSettings) -> Path:
    """Writes the tokenizer files of a bundle, and returns its folder."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for name, content in settings.files.items():
        (bundle / name).write_bytes(content)
    return bundle


def assert_decodes_as(loaded: Any, settings: ImportedSettings, bundle: Path) -> None:
    """Asserts that the runtime decodes random tokens to the text that transformers decodes."""
    assert settings.vocabulary is not None
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, len(loaded), 12).tolist()
        expected = loaded.decode(ids, skip_special_tokens=True)
        assert text_of(ids, settings.vocabulary, bundle) == expected


def test_texts_are_encoded_as_by_transformers(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "unigram", model_max_length=30)
    transformers.T5Config(vocab_size=120, decoder_start_token_id=0).save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = import_settings(tmp_path, None, 20)
    assert settings.preprocess == TextInput(
        "input_ids", "tokenizer.json", 30, mask="attention_mask", pad_token=0
    )
    assert settings.generation.start_tokens == (0,), "T5 starts with its pad token"
    bundle = write_files(tmp_path, settings)
    for text in TEXTS:
        arrays = prepare([], settings.preprocess, folder=bundle, texts=[text])
        assert arrays["input_ids"][0].tolist() == loaded(text)["input_ids"]
    two_texts = prepare([], settings.preprocess, folder=bundle, texts=TEXTS[:2])
    assert two_texts["attention_mask"].sum(1).tolist() == [
        len(loaded(text)["input_ids"]) for text in TEXTS[:2]
    ]
    with pytest.raises(InputError, match=r"'the lazy dog the lazy dog.*longer than the 30"):
        prepare([], settings.preprocess, folder=bundle, texts=["the lazy dog " * 30])
    with pytest.raises(InputError, match="a text is empty"):
        prepare([], settings.preprocess, folder=bundle, texts=[" \n"])


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("tidy", [False, True])
def test_texts_are_decoded_as_by_transformers(tmp_path: Path, kind: str, tidy: bool) -> None:
    loaded = save_tokenizer(tmp_path, kind, clean_up_tokenization_spaces=tidy)
    loaded.add_tokens(["<sep/>"])
    loaded.add_special_tokens({"additional_special_tokens": ["<s_task>"]})
    loaded.save_pretrained(tmp_path)
    transformers.T5Config(vocab_size=len(loaded), decoder_start_token_id=0).save_pretrained(
        tmp_path
    )
    settings = import_settings(tmp_path, None, 20)
    assert isinstance(settings.vocabulary, Tokenizer)
    assert settings.vocabulary.tidy == (tidy and kind != "bpe")
    bundle = write_files(tmp_path, settings)
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_decodes_as(reloaded, settings, bundle)
    prompt = "<s_task>the lazy dog<sep/>"
    assert (
        tokens_of(prompt, settings.vocabulary, bundle)
        == (reloaded(prompt, add_special_tokens=False)["input_ids"])
    )


def test_vision_encoder_decoder(tmp_path: Path) -> None:
    """A TrOCR: settings that the top level of the config lacks are those of its decoder."""
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(image_size=32),
        transformers.TrOCRConfig(decoder_start_token_id=2, max_position_embeddings=50),
    )
    config.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    loaded = save_tokenizer(tmp_path)
    settings = import_settings(tmp_path, config)
    generation = settings.generation
    assert (generation.start_tokens, generation.end_tokens, generation.pad_token) == ((2,), (2,), 1)
    assert generation.max_length == 50
    assert settings.preprocess == PixelsInput(
        "pixel_values", (Resize(32, 32, "bilinear"),), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(picture)
    expected = np.stack(processor(Image.open(picture))["pixel_values"])
    actual = prepare([picture], settings.preprocess)["pixel_values"]
    assert_close_in_float32(actual, expected)
    assert_decodes_as(loaded, settings, write_files(tmp_path, settings))


def donut_config() -> Any:
    """Returns the config of a Donut."""
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.DonutSwinConfig(), transformers.MBartConfig(decoder_start_token_id=5)
    )


@pytest.mark.parametrize(
    "name", ["DonutImageProcessor", "NougatImageProcessor", "DonutFeatureExtractor"]
)
def test_document_images_are_prepared_as_by_transformers(tmp_path: Path, name: str) -> None:
    """Old folders name a feature extractor, and leave out its default values."""
    donut_config().save_pretrained(tmp_path)
    kind = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
    size = {"height": 64, "width": 48}
    save_json(
        tmp_path, "preprocessor_config.json", {kind: name, "size": size, "do_align_long_axis": True}
    )
    settings = import_settings(tmp_path, None, 20)
    assert isinstance(settings.preprocess, PixelsInput)
    assert AlignLongAxis(64, 48) in settings.preprocess.steps
    assert (CropMargin() in settings.preprocess.steps) == name.startswith("Nougat")
    assert settings.vocabulary is None
    assert "has no tokenizer" in settings.warnings[0]
    prefix = name.removesuffix("FeatureExtractor").removesuffix("ImageProcessor")
    processor = getattr(transformers, f"{prefix}ImageProcessorPil")(
        size=size, do_align_long_axis=True
    )
    picture = tmp_path / "page.png"
    page = np.full((50, 90, 3), 255, np.uint8)
    page[8:40, 10:70] = np.random.default_rng(0).integers(0, 255, (32, 60, 3))
    Image.fromarray(page).save(picture)
    expected = np.stack(processor(Image.open(picture))["pixel_values"])
    actual = prepare([picture], settings.preprocess)["pixel_values"]
    assert_close_in_float32(actual, expected)


def test_the_image_processor_may_be_part_of_a_processor_config(tmp_path: Path) -> None:
    """Since version 5 of transformers, a processor saves one file with its parts."""
    donut_config().save_pretrained(tmp_path)
    part = {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False}
    save_json(tmp_path, "processor_config.json", {"image_processor": part})
    settings = import_settings(tmp_path, None, 20)
    assert settings.preprocess == PixelsInput(
        "pixel_values", (Resize(256, 256, "bicubic"),), mean=(0.5,) * 3, std=(0.5,) * 3
    )


def test_whisper_audio_becomes_a_log_mel_spectrogram(tmp_path: Path) -> None:
    settings = import_settings(save_whisper(tmp_path))
    features = LogMel(mels=80, fft=400, hop=160, samples=32000)
    assert settings.preprocess == AudioInput("input_features", 16000, features)


def test_speech_to_text_audio_and_tokenizer(tmp_path: Path) -> None:
    config = transformers.Speech2TextConfig(vocab_size=60, max_source_positions=600)
    config.save_pretrained(tmp_path)
    transformers.Speech2TextFeatureExtractor(normalize_vars=False).save_pretrained(tmp_path)
    model, pieces = train_pieces(tmp_path / "sentencepiece.bpe.model")
    vocabulary = {
        piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])
    }
    save_json(tmp_path, "vocab.json", vocabulary)
    loaded = transformers.Speech2TextTokenizer(str(tmp_path / "vocab.json"), str(model))
    loaded.save_pretrained(tmp_path)
    settings = import_settings(tmp_path, config, 20)
    assert settings.preprocess == AudioInput(
        "input_features", 16000, FilterBank(80, True, False), mask="attention_mask", max_seconds=6.0
    )
    assert_decodes_as(loaded, settings, write_files(tmp_path, settings))


def test_moonshine_audio_stays_a_waveform(tmp_path: Path) -> None:
    transformers.MoonshineConfig(vocab_size=100).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(
        do_normalize=False, return_attention_mask=True
    ).save_pretrained(tmp_path)
    settings = import_settings(tmp_path, None, 20)
    assert settings.preprocess == AudioInput(
        "input_values", 16000, Waveform(False), mask="attention_mask"
    )
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.arange(-400, 400, dtype="<i2").tobytes())
    arrays = prepare([path], settings.preprocess)
    assert arrays["input_values"].shape == arrays["attention_mask"].shape == (1, 800)
    assert arrays["input_values"][0, 0] == np.float32(-400 / 32768)


@pytest.fixture
def marian(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> tuple[Path, Any]:
    """A folder with a Marian, and its tokenizer."""
    source, pieces = train_pieces(tmp_path / "source.spm")
    target, _ = train_pieces(tmp_path / "target.spm")
    # the ids have another order than SentencePiece's; some pieces exist in the target alone
    names = ["</s>", "<unk>", *sorted(pieces), "▁Hund", "ß", ">>deu<<", "<pad>"]
    save_json(tmp_path, "vocab.json", {name: index for index, name in enumerate(names)})
    loaded = transformers.MarianTokenizer(str(source), str(target), str(tmp_path / "vocab.json"))
    loaded.save_pretrained(tmp_path)
    pad = len(names) - 1
    config = transformers.MarianConfig(
        vocab_size=len(names), pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0
    )
    config.save_pretrained(tmp_path)
    generation = {
        "decoder_start_token_id": pad, "pad_token_id": pad, "eos_token_id": 0, "max_length": 32,
        "bad_words_ids": [[pad], [0]], "forced_eos_token_id": 0, "num_beams": 6,
    }  # fmt: skip
    save_json(tmp_path, "generation_config.json", generation)
    return tmp_path, loaded


def test_marian_texts_are_encoded_and_decoded_as_by_transformers(marian: tuple[Path, Any]) -> None:
    folder, loaded = marian
    settings = import_settings(folder)
    pad = loaded.pad_token_id
    generation = settings.generation
    assert (generation.start_tokens, generation.end_tokens) == ((pad,), (0,))
    assert generation.suppressed == (pad,), "the end token is no bad word"
    assert generation.forced_end == 0
    assert any("punctuation is not normalised" in line for line in settings.warnings)
    bundle = write_files(folder, settings)
    for text in [*TEXTS, ">>deu<< the lazy dog", "Straße"]:
        arrays = prepare([], settings.preprocess, folder=bundle, texts=[text])
        assert arrays["input_ids"][0].tolist() == loaded(text)["input_ids"], text
    assert_decodes_as(loaded, settings, bundle)


def test_blip_takes_an_image_and_for_questions_a_text(tmp_path: Path) -> None:
    text = {"vocab_size": 150, "bos_token_id": 4, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(text_config=text)
    config.save_pretrained(tmp_path)
    transformers.BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "wordpiece")
    settings = import_settings(tmp_path, config, 20)
    generation = settings.generation
    assert (generation.start_tokens, generation.end_tokens, generation.pad_token) == ((4,), (3,), 0)
    assert isinstance(settings.preprocess, PixelsInput)
    assert settings.preprocess.steps == (Resize(32, 32, "bicubic"),)
    content = json.loads((tmp_path / "config.json").read_text())
    save_json(tmp_path, "config.json", content | {"architectures": ["BlipForQuestionAnswering"]})
    pixels, question = import_settings(tmp_path, config, 20).preprocess  # type: ignore[misc]
    assert isinstance(pixels, PixelsInput)
    assert isinstance(question, TextInput)


def test_pix2struct_images_become_patches(tmp_path: Path) -> None:
    transformers.Pix2StructConfig().save_pretrained(tmp_path)
    save_json(
        tmp_path, "preprocessor_config.json",
        {"image_processor_type": "Pix2StructImageProcessor", "max_patches": 64},
    )  # fmt: skip
    settings = import_settings(tmp_path, None, 20)
    assert settings.preprocess == PatchesInput("flattened_patches", "attention_mask", 64, 16, 16)
    content = {"image_processor_type": "Pix2StructImageProcessor", "is_vqa": True}
    save_json(tmp_path, "preprocessor_config.json", content)
    with pytest.raises(UnsupportedModelError, match=r"writes the question into the picture"):
        import_settings(tmp_path, None, 20)
