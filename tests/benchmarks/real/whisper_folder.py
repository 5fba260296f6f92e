"""Writes a Whisper model of CTranslate2 as the folder that Hugging Face's `save_pretrained` writes.

Weights that CTranslate2 stacked (query, key and value of self-attention; key and value of
cross-attention) are taken apart, and all become float32. What is written beside them is what
`openai/whisper-*` have in their folders.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from hybrid_deploy.errors import InputError
from tests.benchmarks.real.ctranslate2_file import Weights, read_weights

Array = NDArray[Any]

_MULTILINGUAL_VOCABULARY = 51_865  # `Whisper.is_multilingual` of openai-whisper: so many or more
_HOP, _RATE, _STRIDE = 160, 16_000, 2  # samples per frame and second, frames per encoder position
_END = "<|endoftext|>"
_SELF = (("linear_0", ("q_proj", "k_proj", "v_proj")), ("linear_1", ("out_proj",)))
_CROSS = (
    ("linear_0", ("q_proj",)),
    ("linear_1", ("k_proj", "v_proj")),
    ("linear_2", ("out_proj",)),
)
_SIDES = ("encoder", "decoder")


def write_hugging_face(source: Path, out: Path) -> None:
    """Writes model, feature extractor, tokenizer and their settings.

    Args:
        source: folder with CTranslate2's model.bin, config.json and tokenizer.json.
        out: folder that is written.

    Raises:
        InputError: model.bin cannot be read, or is no Whisper model.
    """
    weights = read_weights(source / "model.bin")
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    special = _special_tokens(source / "tokenizer.json")
    config = config_of(weights, special)
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict({key: torch.tensor(v) for key, v in state_of(weights).items()})
    model.generation_config = _generation(config, settings, special)
    model.save_pretrained(out)
    seconds = config.max_source_positions * _STRIDE * _HOP // _RATE
    WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds).save_pretrained(
        out
    )
    _write_tokenizer(source / "tokenizer.json", out)


def config_of(weights: Weights, special: Mapping[str, int]) -> WhisperConfig:
    """Returns the architecture, as the shapes of the weights tell it.

    Args:
        weights: variables of the file by their names.
        special: ids of the special tokens by their texts.
    """
    vocabulary, width = weights["decoder/embeddings/weight"].shape
    end = special[_END]
    sizes = {
        f"{side}_{name}": number
        for side in _SIDES
        for name, number in (
            ("layers", _layer_count(weights, side)),
            ("attention_heads", int(weights[f"{side}/num_heads"])),
            ("ffn_dim", len(weights[f"{side}/layer_0/ffn/linear_0/bias"])),
        )
    }
    return WhisperConfig(
        vocab_size=vocabulary, d_model=width, num_mel_bins=weights["encoder/conv1/weight"].shape[1],
        max_source_positions=len(weights["encoder/position_encodings/encodings"]),
        max_target_positions=len(weights["decoder/position_encodings/encodings"]),
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=end + 1,
        **sizes,
    )  # fmt: skip


def state_of(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Returns the weights under the names that `WhisperForConditionalGeneration` has for them.

    Raises:
        InputError: a weight is missing, is left over, or has no place there.
    """
    left = {name: array.astype(np.float32) for name, array in weights.items() if array.ndim}
    try:
        state = _ends(left)
        for side in _SIDES:
            state |= _norm(left, f"{side}/layer_norm", f"model.{side}.layer_norm")
            for number in range(_layer_count(weights, side)):
                state |= _layer(left, side, number)
    except KeyError as error:
        raise InputError(f"the Whisper model has no {error.args[0]}; is it of another kind?") from (
            error
        )
    if left:
        raise InputError(f"the Whisper model has {', '.join(sorted(left))}, which has no place")
    return state


def _ends(left: dict[str, Array]) -> dict[str, Array]:
    """Takes what stands outside the layers: embeddings, positions and convolutions."""
    embeddings = left.pop("decoder/embeddings/weight")
    state = {"model.decoder.embed_tokens.weight": embeddings, "proj_out.weight": embeddings}
    for side in _SIDES:
        positions = left.pop(f"{side}/position_encodings/encodings")
        state[f"model.{side}.embed_positions.weight"] = positions
    for name in ("conv1", "conv2"):
        state |= _linear(left, f"encoder/{name}", f"model.encoder.{name}")
    return state


def _layer(left: dict[str, Array], side: str, number: int) -> dict[str, Array]:
    source, target = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
    state = _attention(left, f"{source}/self_attention", f"{target}.self_attn", _SELF)
    if side == "decoder":
        state |= _attention(left, f"{source}/attention", f"{target}.encoder_attn", _CROSS)
    state |= _norm(left, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    state |= _linear(left, f"{source}/ffn/linear_0", f"{target}.fc1")
    return state | _linear(left, f"{source}/ffn/linear_1", f"{target}.fc2")


def _attention(
    left: dict[str, Array],
    source: str,
    target: str,
    stacked: tuple[tuple[str, tuple[str, ...]], ...],
) -> dict[str, Array]:
    state = _norm(left, f"{source}/layer_norm", f"{target}_layer_norm")
    for name, parts in stacked:
        for kind, array in _linear(left, f"{source}/{name}", "").items():
            pieces = np.split(array, len(parts))
            state |= {f"{target}.{p}{kind}": a for p, a in zip(parts, pieces, strict=True)}
    # a constant that is added to all keys changes no softmax, so Whisper's keys have no bias
    if state.pop(f"{target}.k_proj.bias").any():
        raise InputError(f"{source} has a bias of the keys, which Whisper has not")
    return state


def _norm(left: dict[str, Array], source: str, target: str) -> dict[str, Array]:
    return {
        f"{target}.weight": left.pop(f"{source}/gamma"),
        f"{target}.bias": left.pop(f"{source}/beta"),
    }


def _linear(left: dict[str, Array], source: str, target: str) -> dict[str, Array]:
    return {f"{target}.{kind}": left.pop(f"{source}/{kind}") for kind in ("weight", "bias")}


def _layer_count(weights: Weights, side: str) -> int:
    prefix = f"{side}/layer_"
    numbers = {
        name.removeprefix(prefix).partition("/")[0] for name in weights if name.startswith(prefix)
    }
    return len({number for number in numbers if number.isdigit()})  # not of layer_norm


def _special_tokens(path: Path) -> dict[str, int]:
    """Returns the ids of the tokens that the tokenizer has beside its vocabulary, by their text."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _generation(
    config: WhisperConfig, settings: Mapping[str, Any], special: Mapping[str, int]
) -> GenerationConfig:
    """Returns what `generate` decodes by: English, without timestamps."""
    no_timestamps = special["<|notimestamps|>"]
    common: dict[str, Any] = {
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.eos_token_id,
        "bos_token_id": config.eos_token_id,
        "max_length": config.max_target_positions,
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "no_timestamps_token_id": no_timestamps,
        "prev_sot_token_id": special["<|startofprev|>"],
        "return_timestamps": False,
    }
    if config.vocab_size < _MULTILINGUAL_VOCABULARY:
        return GenerationConfig(
            **common, is_multilingual=False, forced_decoder_ids=[[1, no_timestamps]]
        )
    tasks = {task: special[f"<|{task}|>"] for task in ("transcribe", "translate")}
    spoken = set(settings["lang_ids"])
    languages = {text: token for text, token in special.items() if token in spoken}
    return GenerationConfig(
        **common, is_multilingual=True, language="en", task="transcribe", task_to_id=tasks,
        lang_to_id=languages,
    )  # fmt: skip


def _write_tokenizer(path: Path, out: Path) -> None:
    shutil.copyfile(path, out / path.name)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), _END)
    config = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **ends}
    (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
