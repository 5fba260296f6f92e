"""Chooses the normaliser that suits the texts of a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from hybrid_deploy.accuracy.normalizers import Normalizer, check_labels, load_normalizer
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.input_specs import AudioInput
from hybrid_deploy.bundle.manifest import Tokenizer

ENGLISH = "en"
_WHISPER_START = "<|startoftranscript|>"
_TRANSLATION = "<|translate|>"
_TRANSCRIPTION = "<|transcribe|>"
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class _AddedToken(msgspec.Struct):
    id: int
    content: str


class _TokenizerFile(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def normalizer_for(bundle: Bundle, labels: Sequence[str], name: str | None = None) -> Normalizer:
    """Returns the normaliser that a bundle's texts are compared with; reports doubts on the log.

    Args:
        bundle: the bundle.
        labels: the true texts.
        name: name of the normaliser; None takes the bundle's default.

    Raises:
        UsageError: there is no such normaliser.
        InputError: it would destroy the labels.
        MissingDependencyError: its library is not installed.
        BundleError: the tokenizer's file is missing or has changed.
    """
    normalizer = load_normalizer(default_normalizer(bundle) if name is None else name)
    check_labels(labels, normalizer)
    return normalizer


def default_normalizer(bundle: Bundle) -> str:
    """Returns the name of the normaliser that the bundle's texts are compared with by default.

    Texts that are heard are compared with `whisper` if the bundle is known to write English, else
    with `basic`. Of all others, case and punctuation are part of what is read: `none`.

    Raises:
        BundleError: the tokenizer's file is missing or has changed.
    """
    if not hears(bundle):
        return "none"
    return "whisper" if written_language(bundle) == ENGLISH else "basic"


def hears(bundle: Bundle) -> bool:
    """Returns whether an input of the bundle is sound."""
    preprocess = bundle.manifest.preprocess
    inputs = preprocess if isinstance(preprocess, tuple) else (preprocess,)
    return any(isinstance(part, AudioInput) for part in inputs)


def written_language(bundle: Bundle) -> str | None:
    """Returns the code of the language that a Whisper bundle writes; None if it is not known.

    The start tokens of a multilingual Whisper name the language and the task, and a translation is
    English. Those of an English-only Whisper name neither.

    Raises:
        BundleError: the tokenizer's file is missing or has changed.
    """
    prompt = _start_of_texts(bundle)
    if _WHISPER_START not in prompt:
        return None
    if _TRANSLATION in prompt:
        return ENGLISH
    codes = [match[1] for token in prompt if (match := _LANGUAGE.fullmatch(token))]
    if codes:
        return codes[0]
    return None if _TRANSCRIPTION in prompt else ENGLISH


def _start_of_texts(bundle: Bundle) -> list[str]:
    """Returns the special tokens that every sequence begins with."""
    vocabulary = bundle.manifest.vocabulary
    if not isinstance(vocabulary, Tokenizer):
        return []
    try:
        file = msgspec.json.decode(bundle.read_file(vocabulary.file), type=_TokenizerFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []  # the runtime refuses the file in its own words when it decodes
    special = {token.id: token.content for token in file.added_tokens}
    start = bundle.manifest.generation.start_tokens
    return [special[token] for token in start if token in special]
