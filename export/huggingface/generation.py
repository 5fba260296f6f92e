"""Translates a Hugging Face generation config to the generation defaults of a bundle."""

from __future__ import annotations

from typing import Any

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import ExportError, UnsupportedModelError
from hybrid_deploy.export.huggingface.folder import ModelFolder, token_ids
from hybrid_deploy.export.huggingface.whisper import whisper_prompt

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "sequence_bias": (),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1, 1.0),
    "force_words_ids": (),
    "constraints": (),
    "stop_strings": (),
    "watermarking_config": (),
}
"""Settings that change the tokens and that the runtime lacks, with their neutral values."""

_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions")
_LENGTH_WITH_PROMPT = 1024
_MULTILINGUAL_TYPES = ("mbart", "m2m_100", "nllb-moe", "seamless_m4t")


def generation_of(
    folder: ModelFolder,
    max_length: int | None,
    language: str | None,
    task: str | None,
    *,
    starts_with_prompt: bool = False,
) -> GenerationDefaults:
    """Returns the generation defaults with which the runtime decodes like a model's generate().

    Args:
        folder: settings of the model.
        max_length: largest number of tokens, start tokens included; None takes the config's.
        language: language that a multilingual Whisper hears; None takes the config's.
        task: task of Whisper, `transcribe` or `translate`; None takes the config's.
        starts_with_prompt: whether the decoder begins with the user's prompt; then there are no
            start tokens, and `max_length` counts prompt and answer.

    Raises:
        UnsupportedModelError: a setting changes the tokens, and the runtime has no counterpart.
        ExportError: a setting that the model needs is missing or does not fit.
    """
    _refuse_unknown_settings(folder)
    if (language or task) and folder.model_type != "whisper":
        raise ExportError(f"{folder.model_type} takes no language or task; leave them out")
    start = () if starts_with_prompt else _start_tokens(folder, language, task)
    ends = _end_tokens(folder)
    if starts_with_prompt:
        length = _length_with_prompt(folder, max_length)
    else:
        length = _max_length(folder, max_length, start)
    forced_first = folder.generation_value("forced_bos_token_id")
    if forced_first is None and folder.model_type in _MULTILINGUAL_TYPES:
        folder.warn(
            "generation_config.json names no forced_bos_token_id, so the model itself chooses the "
            "target language"
        )
    beams = folder.generation_value("num_beams") or 1
    if folder.generation_value("do_sample"):
        folder.warn("sampling is asked for; the runtime takes the likeliest token")
    return GenerationDefaults(
        start_tokens=start,
        end_tokens=ends,
        pad_token=_pad_token(folder, ends),
        max_length=length,
        min_length=_min_length(folder, start),
        suppressed=_suppressed(folder, ends),
        begin_suppressed=_real_tokens(folder, "begin_suppress_tokens"),
        forced=() if forced_first is None else ((1, int(forced_first)),),
        forced_end=_forced_end(folder),
        repetition_penalty=float(folder.generation_value("repetition_penalty") or 1.0),
        no_repeat_ngram=int(folder.generation_value("no_repeat_ngram_size") or 0),
        beams=int(beams),
        length_penalty=_number(folder, "length_penalty", 1.0),
        early_stopping=folder.generation_value("early_stopping") or False,
    )


def _refuse_unknown_settings(folder: ModelFolder) -> None:
    for name, neutral in _NEUTRAL_VALUES.items():
        value = folder.generation_value(name)
        if value is not None and value not in neutral:
            raise UnsupportedModelError(
                f"{folder.path} asks for {name} = {value!r}, which the runtime does not have; "
                "remove it from generation_config.json to export without it"
            )


def _start_tokens(folder: ModelFolder, language: str | None, task: str | None) -> tuple[int, ...]:
    if folder.model_type == "blip":
        # BLIP's generate() begins with this token, which no config calls a start token
        start = token_ids(folder.decoder_value("bos_token_id"), "bos_token_id")[:1]
    else:
        start = token_ids(folder.token("decoder_start_token_id"), "decoder_start_token_id")
        start = start or token_ids(folder.token("bos_token_id"), "bos_token_id")
    if len(start) != 1:
        raise ExportError(
            f"{folder.path} names {len(start)} tokens to start decoding with; set "
            "decoder_start_token_id in generation_config.json"
        )
    if folder.model_type == "whisper":
        return whisper_prompt(folder, start, language, task)
    return start


def _end_tokens(folder: ModelFolder) -> tuple[int, ...]:
    name = "sep_token_id" if folder.model_type == "blip" else "eos_token_id"
    ends = token_ids(folder.token(name), name)
    if not ends:
        folder.warn(f"no {name} is named, so every sequence runs to its largest length")
    return ends


def _pad_token(folder: ModelFolder, ends: tuple[int, ...]) -> int:
    pad = token_ids(folder.token("pad_token_id"), "pad_token_id")
    return (pad or ends or (0,))[0]


def _max_length(folder: ModelFolder, max_length: int | None, start: tuple[int, ...]) -> int:
    if max_length is not None:
        if max_length <= len(start):
            raise ExportError(
                f"a largest length of {max_length} leaves no token after the {len(start)} start "
                "tokens"
            )
        return max_length
    positions = next((p for p in map(folder.decoder_value, _POSITIONS) if p is not None), None)
    added = folder.generation_value("max_new_tokens")
    length = len(start) + added if added else folder.generation_value("max_length") or positions
    if length is None:
        raise ExportError(f"{folder.path} has no max_length; give the largest number of tokens")
    if folder.model_type == "whisper" and not added:
        # Whisper's generate() does not count the prompt, as long as the positions suffice
        length = min(length + len(start), positions)
    if positions is not None and length > positions:
        folder.warn(f"max_length is {length}, the decoder has {positions} positions; those count")
        length = positions
    return int(length)


def _length_with_prompt(folder: ModelFolder, max_length: int | None) -> int:
    """Returns the largest length of prompt and answer together, without the image before them."""
    if max_length is not None:
        return max_length
    positions = next((p for p in map(folder.decoder_value, _POSITIONS) if p is not None), None)
    length = _LENGTH_WITH_PROMPT if positions is None else min(positions // 2, _LENGTH_WITH_PROMPT)
    folder.warn(
        f"prompt and answer have room for {length} tokens together; --max-length sets another"
    )
    return length


def _min_length(folder: ModelFolder, start: tuple[int, ...]) -> int:
    added = folder.generation_value("min_new_tokens")
    return max(int(folder.generation_value("min_length") or 0), len(start) + added if added else 0)


def _suppressed(folder: ModelFolder, ends: tuple[int, ...]) -> tuple[int, ...]:
    words = folder.generation_value("bad_words_ids") or []
    longer = [word for word in words if len(word) > 1]
    if longer:
        raise UnsupportedModelError(
            f"{folder.path} forbids words of several tokens (bad_words_ids has {longer[0]}), the "
            "runtime only single ones; remove them from generation_config.json"
        )
    single = [word[0] for word in words if word and word[0] not in ends]
    return tuple(dict.fromkeys((*single, *_real_tokens(folder, "suppress_tokens"))))


def _real_tokens(folder: ModelFolder, name: str) -> tuple[int, ...]:
    """Returns the token ids of a setting without -1, which Whisper writes for no token."""
    tokens = token_ids(folder.generation_value(name), name)
    return tuple(token for token in tokens if token >= 0)


def _forced_end(folder: ModelFolder) -> int | None:
    tokens = token_ids(folder.generation_value("forced_eos_token_id"), "forced_eos_token_id")
    if len(tokens) > 1:
        folder.warn(f"forced_eos_token_id names {len(tokens)} tokens; the first is taken")
    return tokens[0] if tokens else None


def _number(folder: ModelFolder, name: str, neutral: float) -> float:
    value = folder.generation_value(name)
    return neutral if value is None else float(value)
