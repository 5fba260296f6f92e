"""A tiny random Whisper model in CTranslate2's format, and recordings for it."""

from __future__ import annotations

import json
import struct
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.cpu.whisper_tokenizer import TOKENS, write_tokenizer
from tests.benchmarks.real.ctranslate2_file import DTYPES, NAME, VERSION

WIDTH, HEADS, LAYERS, BINS = 64, 1, 1, 80
POSITIONS, CAPACITY = 50, 16
"""Encoder positions (1 s of sound) and largest number of tokens."""

END = 50_257
_GELU = 3


def random_weights(seed: int = 0, vocabulary: int = TOKENS) -> dict[str, NDArray[Any]]:
    """Returns the variables of a model as CTranslate2's file has them, with float16 weights."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[Any]:
        spread = 1.0 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * spread).astype(np.float16)

    shapes: dict[str, tuple[int, ...]] = {
        "decoder/embeddings/weight": (vocabulary, WIDTH),
        "decoder/position_encodings/encodings": (CAPACITY, WIDTH),
        "encoder/position_encodings/encodings": (POSITIONS, WIDTH),
        "encoder/conv1/weight": (WIDTH, BINS, 3),
        "encoder/conv1/bias": (WIDTH,),
        "encoder/conv2/weight": (WIDTH, WIDTH, 3),
        "encoder/conv2/bias": (WIDTH,),
    }
    for side in ("encoder", "decoder"):
        shapes |= _norm(f"{side}/layer_norm")
        for layer in range(LAYERS):
            shapes |= _layer(side, f"{side}/layer_{layer}")
    weights = {name: normal(*shape) for name, shape in shapes.items()}
    for name, array in weights.items():
        if name.endswith("self_attention/linear_0/bias"):
            array[WIDTH : 2 * WIDTH] = 0  # Whisper's keys have no bias
        if name.endswith("/attention/linear_1/bias"):
            array[:WIDTH] = 0
    return weights | {
        "encoder/num_heads": np.array(HEADS, np.int16),
        "decoder/num_heads": np.array(HEADS, np.int16),
        "decoder/activation": np.array(_GELU, np.int8),
        "decoder/alignment_heads": np.array(1, np.int16),
        "decoder/alignment_layer": np.array(-1, np.int16),
        "decoder/alibi": np.array(0, np.int8),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "decoder/start_from_zero_embedding": np.array(0, np.int8),
    }


def _layer(side: str, name: str) -> dict[str, tuple[int, ...]]:
    shapes = _linear(f"{name}/self_attention/linear_0", 3 * WIDTH, WIDTH)
    shapes |= _linear(f"{name}/self_attention/linear_1", WIDTH, WIDTH)
    shapes |= _norm(f"{name}/self_attention/layer_norm") | _norm(f"{name}/ffn/layer_norm")
    if side == "decoder":
        shapes |= _linear(f"{name}/attention/linear_0", WIDTH, WIDTH)
        shapes |= _linear(f"{name}/attention/linear_1", 2 * WIDTH, WIDTH)
        shapes |= _linear(f"{name}/attention/linear_2", WIDTH, WIDTH)
        shapes |= _norm(f"{name}/attention/layer_norm")
    shapes |= _linear(f"{name}/ffn/linear_0", 4 * WIDTH, WIDTH)
    return shapes | _linear(f"{name}/ffn/linear_1", WIDTH, 4 * WIDTH)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/weight": (rows, columns), f"{name}/bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/gamma": (WIDTH,), f"{name}/beta": (WIDTH,)}


def model_bin(weights: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns a file of CTranslate2 with these variables."""
    parts = [struct.pack("<I", VERSION), _text(NAME), struct.pack("<II", 3, len(weights))]
    for name, array in sorted(weights.items()):
        kind = [np.dtype(dtype) for dtype in DTYPES].index(array.dtype)
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [_text(name), shape, struct.pack("<BI", kind, array.nbytes), array.tobytes()]
    parts += [struct.pack("<I", 1), _text("decoder/projection/weight")]
    return b"".join([*parts, _text("decoder/embeddings/weight")])


def _text(text: str) -> bytes:
    encoded = text.encode() + b"\0"
    return struct.pack("<H", len(encoded)) + encoded


def write_model(folder: Path) -> Path:
    """Writes a multilingual model with its tokenizer and settings, and returns the folder."""
    languages = write_tokenizer(folder)
    (folder / "model.bin").write_bytes(model_bin(random_weights()))
    settings = {
        "suppress_ids": [END],
        "suppress_ids_begin": [220, END],
        "lang_ids": sorted(languages.values()),
        "alignment_heads": [],
    }
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokens["model"]["vocab"] | {t["content"]: t["id"] for t in tokens["added_tokens"]}
    words = sorted(vocabulary, key=lambda word: int(vocabulary[word]))
    (folder / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def write_speech(folder: Path, texts: Sequence[str]) -> Path:
    """Writes a recording of noise for each text, and their labels."""
    folder.mkdir()
    rows = ["file,text"]
    for number, text in enumerate(texts):
        rng = np.random.default_rng([number, len(text)])
        samples = rng.normal(0, 300 * (1 + number % 5), 8_000 + 400 * number).astype("<i2")
        with wave.open(str(folder / f"{number:03}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        rows.append(f"{number:03}.wav,{text}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
