"""Tests the generation settings that are imported from a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from hybrid_deploy.errors import ExportError, InputError, UnsupportedModelError
from hybrid_deploy.export.huggingface.config import import_settings
from tests.export.huggingface.saved_folders import save_bart, save_json, save_whisper

MULTILINGUAL = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 51, "<|de|>": 52},
    "task_to_id": {"transcribe": 58, "translate": 57},
}
PROMPTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "english only": ({}, {}, (50, 60)),
    "english only, old": ({"forced_decoder_ids": [[1, 60]]}, {}, (50, 60)),
    "named": (MULTILINGUAL | {"language": "de", "task": "translate"}, {}, (50, 52, 57, 60)),
    "language only": (MULTILINGUAL | {"language": "<|de|>"}, {}, (50, 52, 58, 60)),
    "old": (
        MULTILINGUAL | {"forced_decoder_ids": [[1, 52], [2, 57], [3, 60]]},
        {},
        (50, 52, 57, 60),
    ),
    "to be detected": (
        MULTILINGUAL | {"forced_decoder_ids": [[1, None], [2, 57]]},
        {},
        (50, 51, 57, 60),
    ),
    "given": (MULTILINGUAL, {"language": "German", "task": "transcribe"}, (50, 52, 58, 60)),
}


def test_bart_settings_become_generation_defaults(tmp_path: Path) -> None:
    save_bart(
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


@pytest.mark.parametrize("case", PROMPTS)
def test_whisper_prompt_follows_the_config_and_the_options(tmp_path: Path, case: str) -> None:
    extra, options, prompt = PROMPTS[case]
    settings = import_settings(save_whisper(tmp_path, **extra), **options)
    generation = settings.generation
    assert generation.start_tokens == prompt
    assert generation.suppressed == (3, 4)
    assert generation.begin_suppressed == (5, 49)
    assert any(
        "no language is named; en is the bundle's default" in line for line in settings.warnings
    ) == (case == "to be detected")


@pytest.mark.parametrize("case", [name for name in PROMPTS if name != "to be detected"])
def test_whisper_prompt_is_that_of_transformers(tmp_path: Path, case: str) -> None:
    extra, options, _ = PROMPTS[case]
    settings = import_settings(save_whisper(tmp_path, **extra), **options)
    config = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name, value in {"return_timestamps": False, **options}.items():
        setattr(config, name, value)
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=100, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, pad_token_id=49, eos_token_id=49, bos_token_id=49,
        )
    )  # fmt: skip
    expected = model._retrieve_init_tokens(None, 1, config, model.config, 0, {})
    assert settings.generation.start_tokens == tuple(expected[0].tolist())


def test_whisper_refuses_an_unknown_language(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the model has no language 'fr'; it has: de, en"):
        import_settings(save_whisper(tmp_path, **MULTILINGUAL), language="fr")
    with pytest.raises(ExportError, match="takes no language or task"):
        import_settings(save_bart(tmp_path), language="fr")


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
def test_settings_without_a_counterpart_are_refused(
    tmp_path: Path, generation: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        import_settings(save_bart(tmp_path, **generation))


def test_neutral_values_are_accepted(tmp_path: Path) -> None:
    neutral = {"encoder_no_repeat_ngram_size": 0, "guidance_scale": 1.0, "sequence_bias": None}
    assert import_settings(save_bart(tmp_path, **neutral)).warnings == []


def test_config_counts_only_without_a_generation_config(tmp_path: Path) -> None:
    save_bart(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    old = {"min_length": 7, "no_repeat_ngram_size": 2, "max_length": 33}
    save_json(tmp_path, "config.json", content | old)
    assert import_settings(tmp_path).generation.min_length == 0
    (tmp_path / "generation_config.json").unlink()
    generation = import_settings(tmp_path).generation
    assert (generation.min_length, generation.no_repeat_ngram, generation.max_length) == (7, 2, 33)


def remove(name: str) -> Callable[[Path], None]:
    """Returns a function that removes a file of a folder."""
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    """Returns a function that overwrites a file of a folder."""

    def overwrite(folder: Path) -> None:
        (folder / name).write_text(content)

    return overwrite


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
def test_damaged_folders_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    save_whisper(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        import_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder"):
        import_settings(tmp_path / "nowhere")


def test_the_largest_length_fits_the_positions_and_the_new_tokens(tmp_path: Path) -> None:
    save_bart(tmp_path, max_length=900)
    settings = import_settings(tmp_path)
    assert settings.generation.max_length == 64
    assert settings.warnings == ["max_length is 900, the decoder has 64 positions; those count"]
    with pytest.raises(ExportError, match="leaves no token after the 1 start tokens"):
        import_settings(tmp_path, max_length=1)
    save_bart(tmp_path, max_new_tokens=9, min_new_tokens=4)
    generation = import_settings(tmp_path).generation
    assert (generation.max_length, generation.min_length) == (10, 5)
