"""`run` on pictures with a question, sound, texts and arrays, with and without a prompt."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    AudioInput,
    PixelsInput,
    Preprocess,
    TextInput,
    Waveform,
)
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults, Tokenizer
from hybrid_deploy.bundle.pixel_steps import Resize
from hybrid_deploy.cli import main
from hybrid_deploy.export.export_job import ExportJob, ModelSpec
from hybrid_deploy.export.exporter import run_export
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis

WORDS = ["<pad>", "<s>", "</s>", "what", "colour", "is", "it", "red", "green", "blue", "a", "the"]
WIDTH, MAX_LENGTH, SAMPLES = 16, 8, 160


class TinyAnswerer(nn.Module):
    """A model that answers a question about a picture with a few words."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.sound = nn.Conv1d(1, WIDTH, SAMPLES // 4, SAMPLES // 4)
        self.embedding = nn.Embedding(len(WORDS), WIDTH)
        self.positions = nn.Embedding(MAX_LENGTH, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.head = nn.Linear(WIDTH, len(WORDS))

    def encode(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        picture = self.patches(pixel_values).flatten(2).transpose(1, 2)
        words = self.embedding(input_ids) * attention_mask[..., None]
        question = words.sum(1) / attention_mask.sum(1, keepdim=True)
        memory: Tensor = picture + question[:, None]
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        rows = self.embedding(tokens) + self.positions(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.decoder(rows, memory, tgt_mask=mask))
        return logits


class TinyListener(TinyAnswerer):
    """A model that answers to sound alone."""

    def encode(self, input_values: Tensor) -> Tensor:  # type: ignore[override]
        memory: Tensor = self.sound(input_values[:, None]).transpose(1, 2)
        return memory


def seeded(kind: type[TinyAnswerer]) -> TinyAnswerer:
    torch.manual_seed(4)
    model = kind()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return model.eval()


def tokenizer() -> bytes:
    built = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>")
    )
    built.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return built.to_str().encode()


def spec(preprocess: Preprocess, axes: dict[str, dict[int, DynamicAxis]]) -> ModelSpec:
    return ModelSpec(
        name="answerer",
        generation=GenerationDefaults((1,), (2,), 0, MAX_LENGTH, suppressed=(0, 1)),
        preprocess=preprocess,
        vocabulary=Tokenizer("tokenizer.json", skip=(0, 1, 2)),
        dynamic=axes,
        files={"tokenizer.json": tokenizer()},
    )


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = DynamicAxis("text", DimRange(1, 4, 6))
    picture = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    folder = tmp_path_factory.mktemp("answerer")
    Image.fromarray(picture).save(folder / "photo.png")
    preprocess = (
        PixelsInput("pixel_values", (Resize(8, 8),), mean=(0.5,) * 3, std=(0.5,) * 3),
        TextInput("input_ids", "tokenizer.json", 6, mask="attention_mask"),
    )
    job = ExportJob(
        model=seeded(TinyAnswerer),
        example={
            "pixel_values": torch.zeros(1, 3, 8, 8),
            "input_ids": torch.zeros(1, 4, dtype=torch.int64),
            "attention_mask": torch.ones(1, 4, dtype=torch.int64),
        },
        spec=spec(preprocess, {"input_ids": {1: text}, "attention_mask": {1: text}}),
        golden={
            "photo.png": (folder / "photo.png").read_bytes(),
            "photo.txt": b"what colour is it",
        },
    )
    path = tmp_path_factory.mktemp("bundles") / "answerer.bundle"
    run_export(job, path)
    return path


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = ExportJob(
        model=seeded(TinyListener),
        example={"input_values": torch.zeros(1, SAMPLES)},
        spec=spec(AudioInput("input_values", 16000, Waveform(normalize=True)), {}),
    )
    path = tmp_path_factory.mktemp("bundles") / "listener.bundle"
    run_export(job, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = np.random.default_rng(1).integers(0, 255, (20, 9, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def write_sound(path: Path, *, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        samples = [round(9000 * math.sin(i * i / 40)) for i in range(SAMPLES)]
        file.writeframes(np.array(samples, "<i2").tobytes())
    return path


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def output(*args: object) -> str:
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def records(*args: object) -> list[dict[str, object]]:
    parsed: list[dict[str, object]] = json.loads(output(*args, "--format", "json"))
    return parsed


def refused(*args: object) -> str:
    result = invoke(*args)
    lines = result.stderr.splitlines()
    assert (result.exit_code, result.stdout, len(lines)) == (2, "", 1), result.output
    return lines[0]


def test_question_from_option_and_from_file(answerer: Path, photo: Path) -> None:
    question = "what colour is it"
    answer = output("run", answerer, photo, "--text", question)
    assert set(answer.split()) <= set(WORDS[3:])
    photo.with_suffix(".txt").write_text(f"{question}\n")
    assert output("run", answerer, photo) == answer
    photo.with_suffix(".txt").write_text("the")
    assert output("run", answerer, photo) != answer


def test_golden_sample_has_its_question_beside_it(answerer: Path) -> None:
    (sample,) = open_bundle(answerer).manifest.golden
    assert sample.file == "golden/photo.png"
    assert (answerer / "golden" / "photo.txt").is_file()
    (record,) = records("run", answerer, answerer / sample.file)
    assert record["tokens"] == list(sample.tokens)
    (row,) = json.loads(output("verify", answerer, "--format", "json"))
    assert row["verdict"] == "ok"


def test_missing_question(answerer: Path, photo: Path) -> None:
    message = refused("run", answerer, photo)
    assert "takes a text with" in message
    assert "give it with --text, or in" in message
    photo.with_suffix(".txt").symlink_to("nowhere")
    assert "is a link to a file that does not exist" in refused("run", answerer, photo)
    message = refused("run", answerer, photo, "--text", "a " * 9)
    assert "a text of 9 tokens" in message
    assert "longer than the 6" in message


def test_prompt_is_continued(answerer: Path, photo: Path) -> None:
    free, ids, words, begun = (
        records("run", answerer, photo, "--text", "what", *more)[0]["tokens"]
        for more in (
            [],
            ["--prompt", "10,8"],
            ["--prompt-text", "a green"],
            ["--prompt", "1, 10,8"],  # with the start token
        )
    )
    assert ids == words == begun
    assert isinstance(free, list)
    assert isinstance(ids, list)
    assert len(ids) <= MAX_LENGTH - 3
    (same,) = records(
        "run", answerer, photo, "--text", "what", "--prompt", ",".join(map(str, free[:2]))
    )
    assert same["tokens"] == free[2:]


def test_bad_prompts(answerer: Path, photo: Path, tiny_path: Path, page: Path) -> None:
    run = ("run", answerer, photo, "--text", "what")
    assert "expected token ids separated by commas" in refused(*run, "--prompt", "red")
    assert "the prompt has token 99, the model's last is 11" in refused(*run, "--prompt", "99")
    message = refused("run", tiny_path, page, "--prompt-text", "abc")
    assert "has no tokenizer, so a prompt cannot be text; give token ids with --prompt" in message
    assert "takes no text besides its files" in refused("run", tiny_path, page, "--text", "abc")
    assert "Missing argument 'FILES...'" in refused("run", tiny_path)


def test_suppressed_tokens_never_come(answerer: Path, photo: Path) -> None:
    (record,) = records("run", answerer, photo, "--text", "what colour is it")
    assert isinstance(record["tokens"], list)
    assert not {0, 1} & set(record["tokens"])


def test_sound(listener: Path, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav")
    first, second = output("run", listener, sound, sound).splitlines()
    assert first == second
    assert set(first.split()) <= set(WORDS[3:])
    message = refused("run", listener, write_sound(tmp_path / "b.wav", rate=8000))
    assert "b.wav has 8000 samples per second, the model takes 16000" in message
    assert "ffmpeg -i" in message


def test_arrays(listener: Path, tmp_path: Path) -> None:
    """A bundle with the same graphs, whose input is described as an array."""
    import shutil

    path = Path(shutil.copytree(listener, tmp_path / "arrays.bundle"))
    manifest = open_bundle(path).manifest
    seal_bundle(path, msgspec.structs.replace(manifest, preprocess=ArrayInput("input_values")))
    signal = np.random.default_rng(0).standard_normal((1, SAMPLES)).astype(np.float32)
    np.save(tmp_path / "a.npy", signal)
    np.savez(tmp_path / "a.npz", input_values=signal, other=signal)
    first, second = records("run", path, tmp_path / "a.npy", tmp_path / "a.npz")
    assert first["tokens"] == second["tokens"]
    np.savez(tmp_path / "b.npz", other=signal)
    assert "b.npz lacks input_values" in refused("run", path, tmp_path / "b.npz")


def test_text_alone(answerer: Path, tmp_path: Path) -> None:
    """Text alone comes from files or from the option --text."""
    from hybrid_deploy.runtime.preprocess.prepare import prepare

    text = TextInput("input_ids", "tokenizer.json", 6, mask="attention_mask", suffix=(2,))
    for name, content in (("a.txt", "what colour"), ("b.txt", "red\n")):
        (tmp_path / name).write_text(content)
    arrays = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], text, folder=answerer)
    assert arrays["input_ids"].tolist() == [[3, 4, 2], [7, 2, 0]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    from_option = prepare([], text, folder=answerer, texts=["what colour"])
    assert from_option["input_ids"].tolist() == [[3, 4, 2]]
