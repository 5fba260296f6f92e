"""Reads Whisper's prompts: the tokens that its generate() puts before the text, and the choices."""

from __future__ import annotations

from typing import Any

from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.errors import ExportError
from hybrid_deploy.export.huggingface.folder import ModelFolder, token_ids

DEFAULT_LANGUAGE = "en"
TASKS = ("transcribe", "translate")


def whisper_prompt(
    folder: ModelFolder, start: tuple[int, ...], language: str | None, task: str | None
) -> tuple[int, ...]:
    """Returns start token, language, task and the token for no timestamps.

    In transformers a multilingual Whisper detects the language with an additional decoder step,
    unless one is named. A bundle has a default language, and a call may name another.

    Args:
        folder: settings of the model.
        start: token ids of the start, one token.
        language: a code such as `de`, or an English name; None takes the config's.
        task: `transcribe` or `translate`; None takes the config's.

    Raises:
        ExportError: the model does not have the language or the task.
    """
    languages: dict[str, int] = folder.generation_value("lang_to_id") or {}
    tasks: dict[str, int] = folder.generation_value("task_to_id") or {}
    language = language or folder.generation_value("language")
    task = task or folder.generation_value("task")
    prompt: list[int | None] = list(start)
    if language is None and task is None:
        prompt += _forced(folder)
    if language is None and languages and (len(prompt) < 2 or prompt[1] is None):
        language = DEFAULT_LANGUAGE
        folder.warn(
            f"no language is named; {language} is the bundle's default. `run --language de` names "
            "another, `--language auto` detects it"
        )
    if language is not None:
        prompt[1:2] = [_language_id(language, languages)]
    if task is not None or (language is not None and tasks and not set(tasks.values()) & {*prompt}):
        prompt = [token for token in prompt if token not in tasks.values()]
        prompt.append(_task_id(task or TASKS[0], tasks))
    no_timestamps = folder.generation_value("no_timestamps_token_id")
    if folder.generation_value("return_timestamps"):
        folder.warn("timestamps are asked for; the bundle makes them with `run --timestamps` alone")
    if no_timestamps is not None and prompt[-1] != no_timestamps:
        prompt = [*(token for token in prompt if token != no_timestamps), no_timestamps]
    return tuple(token for token in prompt if token is not None)


def speech_tokens(folder: ModelFolder) -> SpeechTokens | None:
    """Returns the tokens among which a call chooses; None if the folder names no start token.

    Args:
        folder: settings of the model.
    """
    starts = token_ids(folder.token("decoder_start_token_id"), "decoder_start_token_id")
    if not starts:
        return None
    languages: dict[str, int] = folder.generation_value("lang_to_id") or {}
    no_timestamps = folder.generation_value("no_timestamps_token_id")
    return SpeechTokens(
        start=starts[0],
        languages={token.strip("<|>"): index for token, index in sorted(languages.items())},
        tasks=dict(folder.generation_value("task_to_id") or {}),
        no_timestamps=no_timestamps,
        max_initial_timestamp=folder.generation_value("max_initial_timestamp_index"),
        previous=folder.generation_value("prev_sot_token_id"),
        # transformers takes the same place in the vocabulary; no config names this token
        no_speech=None if no_timestamps is None else no_timestamps - 1,
    )


def _forced(folder: ModelFolder) -> list[int | None]:
    """Returns the tokens of the old `forced_decoder_ids`, which follow the start token."""
    pairs: list[Any] = folder.generation_value("forced_decoder_ids") or []
    pairs = pairs or folder.decoder_value("forced_decoder_ids") or []
    if [position for position, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise ExportError(
            f"forced_decoder_ids of {folder.path} leave out a position ({pairs}); remove them and "
            "set language and task in generation_config.json"
        )
    return [token for _, token in pairs]


def _language_id(language: str, languages: dict[str, int]) -> int:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.lower()
    for token in (name, f"<|{name}|>", f"<|{TO_LANGUAGE_CODE.get(name)}|>"):
        if token in languages:
            return languages[token]
    names = ", ".join(sorted(token.strip("<|>") for token in languages)) or "none, it is English"
    raise ExportError(f"the model has no language {language!r}; it has: {names}")


def _task_id(task: str, tasks: dict[str, int]) -> int:
    if task not in tasks:
        names = ", ".join(tasks) or "none, it only transcribes"
        raise ExportError(f"the model has no task {task!r}; it has: {names}")
    return tasks[task]
