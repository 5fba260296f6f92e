"""From a Hugging Face generation config to the generation defaults of a bundle."""

from __future__ import annotations

from typing import Any

from hybrid_deploy.bundle.manifest import GenerationDefaults
from hybrid_deploy.errors import ExportError, UnsupportedModelError
from hybrid_deploy.export.huggingface.folder import ModelFolder, token_ids
from hybrid_deploy.export.huggingface.whisper import whisper_prompt

_REFUSED: dict[str, tuple[Any, ...]] = {
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
"""Settings that change which tokens are made and have no counterpart, with their neutral values."""

_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions")
_SPEAKS_MANY = ("mbart", "m2m_100", "nllb-moe", "seamless_m4t")


def generation_of(
    folder: ModelFolder, max_length: int | None, language: str | None, task: str | None
) -> GenerationDefaults:
    """Returns how a model's generate() decodes, as far as a device can.

    Args:
        folder: the model's settings.
        max_length: largest number of tokens, the start tokens included; None takes the config's.
        language: what a multilingual Whisper hears; None takes the config's.
        task: of Whisper, `transcribe` or `translate`; None takes the config's.

    Raises:
        UnsupportedModelError: a setting that changes the tokens cannot be carried over.
        ExportError: what is needed is missing.
    """
    _refuse_what_has_no_counterpart(folder)
    if (language or task) and folder.model_type != "whisper":
        raise ExportError(f"{folder.model_type} takes no language or task; leave them out")
    start = _start_tokens(folder, language, task)
    ends = _end_tokens(folder)
    length = _max_length(folder, max_length, start)
    forced_first = folder.generation_value("forced_bos_token_id")
    if forced_first is None and folder.model_type in _SPEAKS_MANY:
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
        begin_suppressed=_known(folder, "begin_suppress_tokens"),
        forced=() if forced_first is None else ((1, int(forced_first)),),
        forced_end=_forced_end(folder),
        repetition_penalty=float(folder.generation_value("repetition_penalty") or 1.0),
        no_repeat_ngram=int(folder.generation_value("no_repeat_ngram_size") or 0),
        beams=int(beams),
        length_penalty=_number(folder, "length_penalty", 1.0),
        early_stopping=folder.generation_value("early_stopping") or False,
    )


def _refuse_what_has_no_counterpart(folder: ModelFolder) -> None:
    for name, neutral in _REFUSED.items():
        value = folder.generation_value(name)
        if value is not None and value not in neutral:
            raise UnsupportedModelError(
                f"{folder.path} asks for {name} = {value!r}, which the runtime does not have; "
                "remove it from generation_config.json to export without it"
            )


def _start_tokens(folder: ModelFolder, language: str | None, task: str | None) -> tuple[int, ...]:
    if folder.model_type == "blip":
        # BLIP begins every text with the start token of its text model, and says so nowhere.
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


def _max_length(folder: ModelFolder, wanted: int | None, start: tuple[int, ...]) -> int:
    if wanted is not None:
        if wanted <= len(start):
            raise ExportError(
                f"a largest length of {wanted} leaves no token after the {len(start)} start tokens"
            )
        return wanted
    positions = next((p for p in map(folder.decoder_value, _POSITIONS) if p is not None), None)
    new = folder.generation_value("max_new_tokens")
    length = len(start) + new if new else folder.generation_value("max_length") or positions
    if length is None:
        raise ExportError(f"{folder.path} says no max_length; give the largest number of tokens")
    if folder.model_type == "whisper" and not new:
        # Its generate() does not count the prompt, as far as there are positions.
        length = min(length + len(start), positions)
    if positions is not None and length > positions:
        folder.warn(f"max_length is {length}, the decoder has {positions} positions; those count")
        length = positions
    return int(length)


def _min_length(folder: ModelFolder, start: tuple[int, ...]) -> int:
    new = folder.generation_value("min_new_tokens")
    return max(int(folder.generation_value("min_length") or 0), len(start) + new if new else 0)


def _suppressed(folder: ModelFolder, ends: tuple[int, ...]) -> tuple[int, ...]:
    words = folder.generation_value("bad_words_ids") or []
    longer = [word for word in words if len(word) > 1]
    if longer:
        raise UnsupportedModelError(
            f"{folder.path} forbids words of several tokens (bad_words_ids has {longer[0]}), the "
            "runtime only single ones; remove them from generation_config.json"
        )
    single = [word[0] for word in words if word and word[0] not in ends]
    return tuple(dict.fromkeys((*single, *_known(folder, "suppress_tokens"))))


def _known(folder: ModelFolder, name: str) -> tuple[int, ...]:
    """Returns token ids without those that stand for nothing: Whisper writes -1 for none."""
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
