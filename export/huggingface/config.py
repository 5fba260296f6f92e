"""Imports the settings of a Hugging Face folder: generation, preprocessing, tokenizer."""

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
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.export.huggingface.folder import PICTURE_SIZE, ModelFolder, open_folder
from hybrid_deploy.export.huggingface.generation import generation_of
from hybrid_deploy.export.huggingface.processor import MASK, input_of, processor_settings
from hybrid_deploy.export.huggingface.prompt import FolderPrompt
from hybrid_deploy.export.huggingface.tokenizer import ImportedTokenizer, import_tokenizer
from hybrid_deploy.export.huggingface.whisper import speech_tokens

TOKENIZER_FILE = "tokenizer.json"
SOURCE_TOKENIZER_FILE = "source_tokenizer.json"
INSTRUCTION_TOKENIZER_FILE = "instruction_tokenizer.json"
TOKENS = "input_ids"

_REQUIRED_PROCESSORS = {
    "vision-encoder-decoder": "an image processor",
    "pix2struct": "an image processor",
    "blip": "an image processor",
    "florence2": "an image processor",
    "whisper": "a feature extractor",
    "speech_to_text": "a feature extractor",
    "speech-encoder-decoder": "a feature extractor",
    "moonshine": "a feature extractor",
    "moonshine_streaming": "a feature extractor",
    "canary": "a feature extractor",
    "cohere_asr": "a feature extractor",
    "speecht5": "a feature extractor",
    "pp_formulanet": "an image processor",
}
_IMAGE_AND_TEXT_MODELS = ("BlipForQuestionAnswering", "Florence2ForConditionalGeneration")
_TEXT_POSITIONS = ("max_source_positions", "max_position_embeddings", "n_positions")
_MODELS_WITH_PROMPT_MASK = ("blip-2", "instructblip")
_DEFAULT_TEXT_LENGTH = 512
_DEFAULT_PROMPT_LENGTH = 128


@dataclass(frozen=True)
class ImportedSettings:
    """The settings of a folder in the terms of a bundle.

    Attributes:
        generation: start tokens, end tokens and the other defaults of decoding.
        preprocess: encoder inputs, with the names that transformers gives them.
        vocabulary: description of the tokenizer; None if the folder has none.
        files: contents of the tokenizer files for the bundle, by name.
        warnings: one line for each setting that the bundle does not follow.
        speech: tokens for language, task and timestamps of a Whisper; None for other models.
    """

    generation: GenerationDefaults
    preprocess: Preprocess
    vocabulary: Tokenizer | None
    files: Mapping[str, bytes]
    warnings: list[str]
    speech: SpeechTokens | None = None


def import_settings(
    folder: Path,
    model_config: Any = None,
    max_length: int | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    starts_with_prompt: bool = False,
    prompt: FolderPrompt | None = None,
    picture_size: tuple[int, int] = PICTURE_SIZE,
) -> ImportedSettings:
    """Returns the generation settings, preprocessing and tokenizer of a folder.

    Args:
        folder: folder that `save_pretrained` of model, processor and tokenizer wrote.
        model_config: config of the loaded model; None reads only `config.json`.
        max_length: largest number of tokens, start tokens included; None takes the config's.
        language: language that a multilingual Whisper hears, such as `de` or `german`; None takes
            the config's.
        task: task of Whisper, `transcribe` or `translate`; None takes the config's.
        starts_with_prompt: whether the decoder begins with the user's prompt, not with start
            tokens of its own.
        prompt: prompt that the encoder reads with an image, as the folder's processor writes it;
            None if it reads none.
        picture_size: width and height of the pictures that the folder is exported for, where its
            processor keeps their proportions.

    Raises:
        InputError: a file of the folder cannot be read.
        UnsupportedModelError: a setting changes the tokens, and the runtime has no counterpart.
        ExportError: the folder lacks a file or setting that the model needs.
    """
    opened = open_folder(folder, model_config, picture_size)
    generation = generation_of(
        opened, max_length, language, task, starts_with_prompt=starts_with_prompt
    )
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
    if prompt is None:
        preprocess = _preprocess(opened, tokenizer, generation)
    else:
        preprocess = _image_and_words(opened, prompt, generation)
        if prompt.instruction_tokenizer is not None:
            files[INSTRUCTION_TOKENIZER_FILE] = prompt.instruction_tokenizer
    speech = speech_tokens(opened) if opened.model_type == "whisper" else None
    return ImportedSettings(generation, preprocess, vocabulary, files, opened.warnings, speech)


def _preprocess(
    folder: ModelFolder, tokenizer: ImportedTokenizer | None, generation: GenerationDefaults
) -> Preprocess:
    image_or_audio: EncoderInput | None = input_of(folder)
    if image_or_audio is None:
        needed = _REQUIRED_PROCESSORS.get(folder.model_type)
        if needed is not None:
            raise ExportError(
                f"{folder.path} has no preprocessor_config.json and the model needs {needed}; save "
                "it there with save_pretrained"
            )
        return _text(folder, tokenizer, generation)
    if folder.architecture in _IMAGE_AND_TEXT_MODELS:
        return (image_or_audio, _text(folder, tokenizer, generation))
    return image_or_audio


def _image_and_words(
    folder: ModelFolder, prompt: FolderPrompt, generation: GenerationDefaults
) -> Preprocess:
    """Returns the inputs of an encoder that reads an image and the words that ask about it."""
    image = input_of(folder)
    if image is None:
        raise ExportError(
            f"{folder.path} has no preprocessor_config.json and the model needs an image "
            "processor; save it there with save_pretrained"
        )
    words = TextInput(
        name=TOKENS,
        tokenizer=TOKENIZER_FILE,
        max_length=len(prompt.before) + _DEFAULT_PROMPT_LENGTH,
        mask=MASK if folder.model_type in _MODELS_WITH_PROMPT_MASK else None,
        pad_token=generation.pad_token,
        prefix=prompt.before,
        template=prompt.template,
    )
    if prompt.instruction_tokenizer is None:
        return (image, words)
    positions = (folder.model.get("qformer_config") or {}).get("max_position_embeddings")
    instruction = TextInput(
        name="qformer_input_ids",
        tokenizer=INSTRUCTION_TOKENIZER_FILE,
        max_length=min(positions or _DEFAULT_PROMPT_LENGTH, _DEFAULT_PROMPT_LENGTH),
        mask="qformer_attention_mask",
    )
    return (image, instruction, words)


def _text(
    folder: ModelFolder, tokenizer: ImportedTokenizer | None, generation: GenerationDefaults
) -> TextInput:
    """Returns the description of an encoder input of text."""
    if tokenizer is None:
        raise ExportError(
            f"{folder.path} has no tokenizer and the encoder takes text; save it there with "
            "save_pretrained"
        )
    limits = (tokenizer.max_length, *map(folder.encoder_value, _TEXT_POSITIONS))
    lengths = [length for length in limits if length is not None]
    return TextInput(
        name=TOKENS,
        tokenizer=TOKENIZER_FILE if tokenizer.encoder is None else SOURCE_TOKENIZER_FILE,
        max_length=min(lengths, default=_DEFAULT_TEXT_LENGTH),
        mask=MASK,
        pad_token=generation.pad_token,
        prefix=_placeholders(folder) if folder.model_type == "florence2" else (),
        suffix=tokenizer.suffix,
    )


def _placeholders(folder: ModelFolder) -> tuple[int, ...]:
    """Returns the placeholder tokens for the image in Florence-2's text."""
    settings = processor_settings(folder) or {}
    token, count = folder.model.get("image_token_id"), settings.get("image_seq_length")
    if token is None or count is None:
        raise ExportError(
            f"{folder.path} has no image_token_id or image_seq_length; save the model and "
            "its processor there again"
        )
    return (int(token),) * int(count)
