"""Folders as save_pretrained writes them, and what is made of them without transformers."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from PIL import Image

from hybrid_deploy.bundle.input_specs import (
    AlignLongAxis,
    AudioInput,
    CropMargin,
    FilterBank,
    LogMel,
    PatchesInput,
    PixelsInput,
    Resize,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import Tokenizer
from hybrid_deploy.errors import ExportError, InputError, UnsupportedModelError
from hybrid_deploy.export.huggingface.config import Settings, import_settings
from hybrid_deploy.runtime.preprocess.prepare import prepare
from hybrid_deploy.runtime.tokenizer import text_of, tokens_of
from tests.closeness import assert_close_in_float32

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs, please!",
    "how do you do? I don't know; he's gone.",
    "sphinx of black quartz, judge my vow",
] * 8
TEXTS = ["the lazy dog", "  judge   my vow, please!  ", "five dozen Dogs? I don't know.", "zebra"]


def save_tokenizer(folder: Path, kind: str = "bpe", **settings: Any) -> Any:
    """Trains a tokenizer on a few sentences and saves it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    decoders, pre = tokenizers.decoders, tokenizers.pre_tokenizers
    if kind == "bpe":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer, made.decoder = pre.ByteLevel(), decoders.ByteLevel()
        trainer: Any = tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre.ByteLevel.alphabet()
        )
    elif kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        made.normalizer = tokenizers.normalizers.BertNormalizer()
        made.pre_tokenizer, made.decoder = pre.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=150, special_tokens=special)
    else:
        made = tokenizers.Tokenizer(tokenizers.models.Unigram())
        made.pre_tokenizer, made.decoder = pre.Metaspace(), decoders.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="<unk>"
        )
    made.train_from_iterator(SENTENCES, trainer)
    if kind != "wordpiece":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "wordpiece":
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[DEC]"}
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names, **settings)
    loaded.save_pretrained(folder)
    return loaded


def save_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


def write_files(folder: Path, settings: Settings) -> Path:
    """Writes the files of a bundle, and gives its folder."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for name, content in settings.files.items():
        (bundle / name).write_bytes(content)
    return bundle


def assert_decodes_as(loaded: Any, settings: Settings, bundle: Path) -> None:
    assert settings.vocabulary is not None
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, len(loaded), 12).tolist()
        wanted = loaded.decode(ids, skip_special_tokens=True)
        assert text_of(ids, settings.vocabulary, bundle) == wanted


def bart(folder: Path, **generation: Any) -> Path:
    """Writes a BART without a processor: its encoder takes text."""
    transformers.BartConfig(vocab_size=400, max_position_embeddings=64).save_pretrained(folder)
    given = {
        "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "max_length": 40,
    }  # fmt: skip
    save_json(folder, "generation_config.json", given | generation)
    save_tokenizer(folder)
    return folder


def test_bart(tmp_path: Path) -> None:
    bart(
        tmp_path, forced_bos_token_id=0, forced_eos_token_id=2, min_length=12,
        no_repeat_ngram_size=3, num_beams=4, length_penalty=2.0, early_stopping=True,
        repetition_penalty=1.2,
    )  # fmt: skip
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    settings = import_settings(tmp_path, config)
    generation = settings.generation
    assert (generation.start_tokens, generation.end_tokens, generation.pad_token) == ((2,), (2,), 1)
    assert (generation.max_length, generation.min_length) == (40, 12)
    assert (generation.forced, generation.forced_end) == (((1, 0),), 2)
    assert (generation.no_repeat_ngram, generation.repetition_penalty) == (3, 1.2)
    assert (generation.beams, generation.length_penalty) == (4, 2.0)
    assert generation.early_stopping is True
    assert settings.warnings == []
    assert import_settings(tmp_path, config, 30).generation.max_length == 30


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
    both = prepare([], settings.preprocess, folder=bundle, texts=TEXTS[:2])
    assert both["attention_mask"].sum(1).tolist() == [
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
    """As TrOCR: what the top of the config does not say, its decoder says."""
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
    wanted = np.stack(processor(Image.open(picture))["pixel_values"])
    given = prepare([picture], settings.preprocess)["pixel_values"]
    assert_close_in_float32(given, wanted)
    assert_decodes_as(loaded, settings, write_files(tmp_path, settings))


def donut_config() -> Any:
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.DonutSwinConfig(), transformers.MBartConfig(decoder_start_token_id=5)
    )


@pytest.mark.parametrize(
    "name", ["DonutImageProcessor", "NougatImageProcessor", "DonutFeatureExtractor"]
)
def test_documents(tmp_path: Path, name: str) -> None:
    """Old folders name a feature extractor, and leave out what is its default."""
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
    kind = name.removesuffix("FeatureExtractor").removesuffix("ImageProcessor")
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(size=size, do_align_long_axis=True)
    picture = tmp_path / "page.png"
    page = np.full((50, 90, 3), 255, np.uint8)
    page[8:40, 10:70] = np.random.default_rng(0).integers(0, 255, (32, 60, 3))
    Image.fromarray(page).save(picture)
    wanted = np.stack(theirs(Image.open(picture))["pixel_values"])
    given = prepare([picture], settings.preprocess)["pixel_values"]
    assert_close_in_float32(given, wanted)


def test_processor_config_with_parts(tmp_path: Path) -> None:
    """Since transformers 5 a processor writes one file with its parts."""
    donut_config().save_pretrained(tmp_path)
    part = {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False}
    save_json(tmp_path, "processor_config.json", {"image_processor": part})
    settings = import_settings(tmp_path, None, 20)
    assert settings.preprocess == PixelsInput(
        "pixel_values", (Resize(256, 256, "bicubic"),), mean=(0.5,) * 3, std=(0.5,) * 3
    )


WHISPER = {
    "decoder_start_token_id": 50, "eos_token_id": 49, "pad_token_id": 49, "max_length": 30,
    "suppress_tokens": [-1, 3, 4], "begin_suppress_tokens": [5, 49],
    "no_timestamps_token_id": 60,
}  # fmt: skip
MANY = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 51, "<|de|>": 52},
    "task_to_id": {"transcribe": 58, "translate": 57},
}
PROMPTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "english only": ({}, {}, (50, 60)),
    "english only, old": ({"forced_decoder_ids": [[1, 60]]}, {}, (50, 60)),
    "named": (MANY | {"language": "de", "task": "translate"}, {}, (50, 52, 57, 60)),
    "language only": (MANY | {"language": "<|de|>"}, {}, (50, 52, 58, 60)),
    "old": (MANY | {"forced_decoder_ids": [[1, 52], [2, 57], [3, 60]]}, {}, (50, 52, 57, 60)),
    "to be detected": (MANY | {"forced_decoder_ids": [[1, None], [2, 57]]}, {}, (50, 51, 57, 60)),
    "given": (MANY, {"language": "German", "task": "transcribe"}, (50, 52, 58, 60)),
}


def whisper(folder: Path, **generation: Any) -> Path:
    config = transformers.WhisperConfig(
        vocab_size=100, num_mel_bins=80, max_source_positions=100, max_target_positions=40
    )
    config.save_pretrained(folder)
    save_json(folder, "generation_config.json", WHISPER | generation)
    transformers.WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", PROMPTS)
def test_whisper(tmp_path: Path, case: str) -> None:
    extra, given, wanted = PROMPTS[case]
    settings = import_settings(whisper(tmp_path, **extra), **given)
    generation = settings.generation
    assert generation.start_tokens == wanted
    assert generation.suppressed == (3, 4)
    assert generation.begin_suppressed == (5, 49)
    assert any("no language is named; en is taken" in line for line in settings.warnings) == (
        case == "to be detected"
    )
    features = LogMel(mels=80, fft=400, hop=160, samples=32000)
    assert settings.preprocess == AudioInput("input_features", 16000, features)


@pytest.mark.parametrize("case", [name for name in PROMPTS if name != "to be detected"])
def test_whisper_prompt_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    extra, given, _ = PROMPTS[case]
    settings = import_settings(whisper(tmp_path, **extra), **given)
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name, value in {"return_timestamps": False, **given}.items():
        setattr(config, name, value)
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=100, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, pad_token_id=49, eos_token_id=49, bos_token_id=49,
        )
    )  # fmt: skip
    theirs = model._retrieve_init_tokens(None, 1, config, model.config, 0, {})
    assert settings.generation.start_tokens == tuple(theirs[0].tolist())


def test_whisper_refuses_an_unknown_language(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the model has no language 'fr'; it has: de, en"):
        import_settings(whisper(tmp_path, **MANY), language="fr")
    with pytest.raises(ExportError, match="takes no language or task"):
        import_settings(bart(tmp_path), language="fr")


def test_speech_to_text(tmp_path: Path) -> None:
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


def test_moonshine(tmp_path: Path) -> None:
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


def train_pieces(path: Path) -> tuple[Path, list[str]]:
    """Trains a SentencePiece model; gives it and its pieces without the special ones."""
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = path.with_suffix("")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(prefix), vocab_size=54,
        model_type="unigram", minloglevel=2,
    )  # fmt: skip
    Path(f"{prefix}.model").rename(path)
    loaded = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return path, [loaded.id_to_piece(i) for i in range(3, loaded.get_piece_size())]


@pytest.fixture
def marian(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> tuple[Path, Any]:
    source, pieces = train_pieces(tmp_path / "source.spm")
    target, _ = train_pieces(tmp_path / "target.spm")
    # Ids in another order than SentencePiece's, with pieces that only the target has.
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


def test_marian(marian: tuple[Path, Any]) -> None:
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


def test_blip(tmp_path: Path) -> None:
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


def test_pix2struct(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (
            {"bad_words_ids": [[5, 6]]},
            r"forbids words of several tokens \(bad_words_ids has \[5, 6\]",
        ),
        ({"encoder_no_repeat_ngram_size": 3}, "asks for encoder_no_repeat_ngram_size = 3, which"),
        ({"sequence_bias": [[[3], -1.0]]}, "asks for sequence_bias"),
        ({"guidance_scale": 2.0}, "remove it from generation_config.json to export without it"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(
    tmp_path: Path, generation: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        import_settings(bart(tmp_path, **generation))


def test_neutral_values_are_no_reason_to_refuse(tmp_path: Path) -> None:
    neutral = {"encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0, "sequence_bias": None}
    assert import_settings(bart(tmp_path, **neutral)).warnings == []


def test_generation_config_makes_the_old_settings_void(tmp_path: Path) -> None:
    bart(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    old = {"min_length": 7, "no_repeat_ngram_size": 2, "max_length": 33}
    save_json(tmp_path, "config.json", content | old)
    assert import_settings(tmp_path).generation.min_length == 0
    (tmp_path / "generation_config.json").unlink()
    generation = import_settings(tmp_path).generation
    assert (generation.min_length, generation.no_repeat_ngram, generation.max_length) == (7, 2, 33)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).write_text(content)].clear()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (remove("preprocessor_config.json"), ExportError, "model needs a feature extractor; save"),
        (remove("config.json"), InputError, r"has no config\.json"),
        (write("config.json", "{"), InputError, r"config\.json is not JSON"),
        (write("generation_config.json", "[]"), InputError, "is not a JSON object"),
        (
            write("preprocessor_config.json", '{"feature_extractor_type": "ClapFeatureExtractor"}'),
            UnsupportedModelError,
            "a processor ClapFeatureExtractor; known are ViT",
        ),
        (write("tokenizer.json", "{"), ExportError, "the tokenizer in .* cannot be loaded"),
    ],
)
def test_damaged_folders(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    whisper(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        import_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        import_settings(tmp_path / "nowhere")


def test_lengths(tmp_path: Path) -> None:
    bart(tmp_path, max_length=900)
    settings = import_settings(tmp_path)
    assert settings.generation.max_length == 64
    assert settings.warnings == ["max_length is 900, the decoder has 64 positions; those count"]
    with pytest.raises(ExportError, match="leaves no token after the 1 start tokens"):
        import_settings(tmp_path, max_length=1)
    bart(tmp_path, max_new_tokens=9, min_new_tokens=4)
    generation = import_settings(tmp_path).generation
    assert (generation.max_length, generation.min_length) == (10, 5)
