"""The prompt of a folder whose language model reads an image or a sound before the words.

transformers puts the words of a user into a text, and the image into it as placeholders:

    chat template   <s> USER: <image> {words} ASSISTANT:
    processor       <s> USER: <image> <image> ... <image> {words} ASSISTANT:
                    |---- fixed, in the encoder graph ---|--- template ----|

The folder's own processor writes it once, for a blank picture or silence and two texts. What stands
before the last placeholder is the same for all words, and fixed; the rest is the bundle's template.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from hybrid_deploy.bundle.prompt_template import PLACE, PromptTemplate
from hybrid_deploy.errors import ExportError
from hybrid_deploy.export.huggingface.folder import PICTURE_SIZE
from hybrid_deploy.export.huggingface.tokenizer import tokenizer_content
from hybrid_deploy.export.trace.refusal import first_line
from hybrid_deploy.runtime.tokenizer import prompt_tokens_of

_WORDS = ("what is this", "describe it, please!")
"""Words that the processor is asked with; the template must give its tokens for each."""

GRID = "image_grid_thw"
"""Size of Qwen2-VL's grid of patches, which its processor returns beside them."""

_SILENCE_SECONDS = 1
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class FolderPrompt:
    """The prompt of a folder, as its processor writes it.

    Attributes:
        example: what the processor made of a blank picture or silence and some words, by name.
        before: tokens up to the last placeholder, with it; the same for all words.
        template: text around the words, after the image or the sound.
        instruction_tokenizer: content of the `tokenizer.json` for the words alone, which the
            Q-Former of InstructBLIP reads; None for other models.
    """

    example: dict[str, Tensor]
    before: tuple[int, ...]
    template: PromptTemplate
    instruction_tokenizer: bytes | None = None


def folder_prompt(
    folder: Path,
    model: PreTrainedModel,
    placeholder: int,
    picture_size: tuple[int, int] = PICTURE_SIZE,
) -> FolderPrompt:
    """Returns the prompt of a folder, written by its processor.

    Args:
        folder: holds the processor, its chat template and its tokenizer.
        model: the loaded model.
        placeholder: id of the token that stands for a part of the image or the sound.
        picture_size: width and height of the blank picture.

    Raises:
        ExportError: the processor cannot be loaded or fails, or its text has no form of a template.
    """
    processor = load_processor(folder, model.config.model_type)
    kind = "audio" if model.main_input_name == "input_features" else "image"
    blank = Image.new("RGB", picture_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = [_written(processor, kind, blank, placeholder, words) for words in _WORDS]
    except Exception as error:  # processors raise what their libraries raise
        raise ExportError(
            f"the processor in {folder} cannot ask the model about a blank {kind}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    rows = [inputs["input_ids"][0].tolist() for inputs in written]
    counts = {row.count(placeholder) for row in rows}
    if len(counts) != 1 or not counts.pop():
        raise ExportError(
            f"the processor in {folder} puts no placeholder {placeholder} for the {kind} into its "
            "text; save the processor that belongs to the model"
        )
    after = [row[len(row) - row[::-1].index(placeholder) :] for row in rows]
    before = [row[: len(row) - len(tail)] for row, tail in zip(rows, after, strict=True)]
    template = _template(processor.tokenizer, after, placeholder)
    if before[0] != before[1] or template is None:
        raise ExportError(
            f"the processor in {folder} writes no text of the form {PLACE} after the {kind}, so a "
            "device could not write it; export the model itself with export_model(model, {...}) "
            "and a prompt_template"
        )
    instruction = getattr(processor, "qformer_tokenizer", None)
    content = None if instruction is None else tokenizer_content(instruction.backend_tokenizer)
    return FolderPrompt(written[0], tuple(before[0]), template, content)


def load_processor(folder: Path, model_type: str) -> Any:
    """Returns the processor of a folder as transformers loads it without a network.

    Args:
        folder: holds the processor and its tokenizer.
        model_type: type in the config of the model, such as `qwen2_vl`.

    Raises:
        ExportError: it cannot be loaded, or has no tokenizer.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            processor = None if is_torchvision_available() else _without_videos(folder, model_type)
            if processor is None:
                processor = AutoProcessor.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # transformers passes on the errors of its libraries
        raise ExportError(
            f"the processor in {folder} cannot be loaded: {first_line(error)}; save it there with "
            "save_pretrained, since the model is asked through it"
        ) from error
    if getattr(processor, "tokenizer", None) is None:
        raise ExportError(
            f"{folder} has a {type(processor).__name__} without a tokenizer; save the whole "
            "processor there with save_pretrained"
        )
    return processor


def _without_videos(folder: Path, model_type: str) -> Any:
    """Returns the processor without its part for videos, which needs torchvision.

    It is None if the processor has no such part.
    """
    whole: Any = getattr(transformers, str(PROCESSOR_MAPPING_NAMES.get(model_type)), None)
    if whole is None or "video_processor" not in whole.get_attributes():
        return None
    settings, _ = whole.get_processor_dict(folder, **_LOCAL)
    parameters = inspect.signature(whole).parameters

    class PicturesOnly(whole):  # type: ignore[misc]  # a class that is known only now
        apply_chat_template = ProcessorMixin.apply_chat_template  # SmolVLM's asks the video part

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            if argument is None:
                return type(None)
            return super().check_argument_for_proper_class(name, argument)

    return PicturesOnly(
        image_processor=AutoImageProcessor.from_pretrained(folder, **_LOCAL),
        tokenizer=AutoTokenizer.from_pretrained(folder, **_LOCAL),
        video_processor=None,
        **{
            name: value
            for name, value in settings.items()
            if name in parameters and name not in whole.get_attributes()
        },
    )


def _written(
    processor: Any, kind: str, blank: Image.Image, placeholder: int, words: str
) -> dict[str, Tensor]:
    """Returns what the processor makes of a blank picture or silence and some words."""
    media: dict[str, Any] = {"images": blank}
    if kind == "audio":
        rate = int(processor.feature_extractor.sampling_rate)
        silence = np.zeros(rate * _SILENCE_SECONDS, np.float32)
        media = {"audio": silence, "sampling_rate": rate}
    if getattr(processor, "chat_template", None) is None:
        # some processors add the placeholders, others expand the one in the text
        token = processor.tokenizer.convert_ids_to_tokens(placeholder)
        with contextlib.suppress(ValueError):  # a processor that counts the placeholders of a text
            alone: dict[str, Tensor] = dict(processor(text=words, return_tensors="pt", **media))
            if (alone["input_ids"] == placeholder).any():
                return alone
        return dict(processor(text=f"{token}{words}", return_tensors="pt", **media))
    (medium, *_) = media.values()
    content = [{"type": kind, kind: medium}, {"type": "text", "text": words}]
    chat = [{"role": "user", "content": content}]
    written: dict[str, Tensor] = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(written)


def _template(tokenizer: Any, tails: list[list[int]], placeholder: int) -> PromptTemplate | None:
    """Returns the template that gives the tokens after the image for all words, if there is one."""
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    text = backend.decode(tails[0], skip_special_tokens=False)
    if text.count(_WORDS[0]) != 1:
        return None
    text = text.replace(_WORDS[0], PLACE)
    marker = tokenizer.convert_ids_to_tokens(placeholder)
    candidates = [
        PromptTemplate(form, None, preceded_by)
        for form in (text, f" {text}", text.removeprefix(" "))
        for preceded_by in ("", marker)
    ]
    for template in candidates:
        tokens = [prompt_tokens_of(words, template, backend) for words in _WORDS]
        if tokens == tails:
            return template
    return None
