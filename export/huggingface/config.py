"""What a Hugging Face folder says besides its weights, carried over into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_deploy.errors import ExportError, MissingDependencyError

try:
    import transformers  # noqa: F401  # the modules below need it
except ImportError as error:
    raise MissingDependencyError("transformers", "hf") from error

from hybrid_deploy.bundle.input_specs import EncoderInput, Preprocess, TextInput
from hybrid_deploy.bundle.manifest import GenerationDefaults, Tokenizer
from hybrid_deploy.export.huggingface.folder import ModelFolder, open_folder
from hybrid_deploy.export.huggingface.generation import generation_of
from hybrid_deploy.export.huggingface.processor import MASK, input_of, processor_settings
from hybrid_deploy.export.huggingface.tokenizer import ImportedTokenizer, import_tokenizer

TOKENIZER_FILE = "tokenizer.json"
SOURCE_TOKENIZER_FILE = "source_tokenizer.json"
TOKENS = "input_ids"

_NEEDS_A_PROCESSOR = {
    "vision-encoder-decoder": "an image processor",
    "pix2struct": "an image processor",
    "blip": "an image processor",
    "florence2": "an image processor",
    "whisper": "a feature extractor",
    "speech_to_text": "a feature extractor",
    "speech-encoder-decoder": "a feature extractor",
    "moonshine": "a feature extractor",
}
_ASKS_A_QUESTION = ("BlipForQuestionAnswering", "Florence2ForConditionalGeneration")
_TEXT_POSITIONS = ("max_source_positions", "max_position_embeddings", "n_positions")
_LONGEST_TEXT = 512


@dataclass(frozen=True)
class Settings:
    """What goes into a bundle besides the graphs.

    Attributes:
        generation: how decoding starts, stops and chooses.
        preprocess: what the encoder takes, under the names of transformers.
        vocabulary: the tokenizer; None if the folder has none.
        files: what the bundle holds for them, by name.
        warnings: what is not carried over, or recorded and not followed; one line each.
    """

    generation: GenerationDefaults
    preprocess: Preprocess
    vocabulary: Tokenizer | None
    files: Mapping[str, bytes]
    warnings: list[str]


def import_settings(
    folder: Path,
    model_config: Any = None,
    max_length: int | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
) -> Settings:
    """Reads generation config, processor and tokenizer of a folder.

    Args:
        folder: as `save_pretrained` of the model, its processor and its tokenizer writes it.
        model_config: the config of the loaded model; None reads `config.json` alone.
        max_length: largest number of tokens, the start tokens included; None takes the config's.
        language: what a multilingual Whisper hears, `de` or `german`; None takes the config's.
        task: of Whisper, `transcribe` or `translate`; None takes the config's.

    Raises:
        InputError: a file of the folder cannot be read.
        UnsupportedModelError: a setting that changes the result cannot be carried over.
        ExportError: what is needed is missing.
    """
    opened = open_folder(folder, model_config)
    generation = generation_of(opened, max_length, language, task)
    tokenizer = import_tokenizer(opened)
    files: dict[str, bytes] = {}
    vocabulary = None
    if tokenizer is None:
        opened.warn(f"{folder} has no tokenizer, so the tokens are printed as numbers")
    else:
        files[TOKENIZER_FILE] = tokenizer.decoder
        vocabulary = Tokenizer(TOKENIZER_FILE, tokenizer.skip, tokenizer.tidy)
        if tokenizer.encoder is not None:
            files[SOURCE_TOKENIZER_FILE] = tokenizer.encoder
    preprocess = _preprocess(opened, tokenizer, generation)
    return Settings(generation, preprocess, vocabulary, files, opened.warnings)


def _preprocess(
    folder: ModelFolder, tokenizer: ImportedTokenizer | None, generation: GenerationDefaults
) -> Preprocess:
    first: EncoderInput | None = input_of(folder)
    if first is None:
        needed = _NEEDS_A_PROCESSOR.get(folder.model_type)
        if needed is not None:
            raise ExportError(
                f"{folder.path} has no preprocessor_config.json and the model needs {needed}; save "
                "it there with save_pretrained"
            )
        return _text(folder, tokenizer, generation)
    if folder.architecture in _ASKS_A_QUESTION:
        return (first, _text(folder, tokenizer, generation))
    return first


def _text(
    folder: ModelFolder, tokenizer: ImportedTokenizer | None, generation: GenerationDefaults
) -> TextInput:
    """Returns the text input."""
    if tokenizer is None:
        raise ExportError(
            f"{folder.path} has no tokenizer and the encoder takes text; save it there with "
            "save_pretrained"
        )
    known = (tokenizer.max_length, *map(folder.encoder_value, _TEXT_POSITIONS))
    lengths = [length for length in known if length is not None]
    return TextInput(
        name=TOKENS,
        tokenizer=TOKENIZER_FILE if tokenizer.encoder is None else SOURCE_TOKENIZER_FILE,
        max_length=min(lengths, default=_LONGEST_TEXT),
        mask=MASK,
        pad_token=generation.pad_token,
        prefix=_placeholders(folder) if folder.model_type == "florence2" else (),
        suffix=tokenizer.suffix,
    )


def _placeholders(folder: ModelFolder) -> tuple[int, ...]:
    """Returns the tokens that stand for the picture in Florence-2's text."""
    settings = processor_settings(folder) or {}
    token, count = folder.model.get("image_token_id"), settings.get("image_seq_length")
    if token is None or count is None:
        raise ExportError(
            f"{folder.path} does not say image_token_id and image_seq_length; save the model and "
            "its processor there again"
        )
    return (int(token),) * int(count)
