"""Models that are asked in words: `run --prompt-text` fills the bundle's template."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from hybrid_deploy.bundle import AudioInput, Tokenizer, Waveform
from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export import export_model
from hybrid_deploy.export.export_job import ExportJob
from hybrid_deploy.runtime.session.session import load_session
from tests.cli.commands.test_run_inputs import (
    MAX_LENGTH,
    SAMPLES,
    WORDS,
    TinyListener,
    invoke,
    output,
    records,
    refused,
    seeded,
    spec,
    tokenizer,
    write_sound,
)

TEMPLATE = "what {prompt} is"


def asked_job() -> ExportJob:
    return ExportJob(
        model=seeded(TinyListener),
        example={"input_values": torch.zeros(1, SAMPLES)},
        spec=spec(AudioInput("input_values", 16000, Waveform(normalize=True)), {}),
    )


def export(path: Path, *options: str) -> Path:
    output("export", f"{__name__}:asked_job", "-o", path, *options)
    return path


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "asked.bundle"
    return export(path, "--prompt-template", TEMPLATE)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "a.wav")


def ids(text: str) -> str:
    return ",".join(str(WORDS.index(word)) for word in text.split())


def test_words_are_put_into_the_template(asked: Path, sound: Path) -> None:
    (by_words,) = records("run", asked, sound, "--prompt-text", "red")
    (by_ids,) = records("run", asked, sound, "--prompt", ids("what red is"))
    (bare,) = records("run", asked, sound, "--prompt", ids("red"))
    assert by_words["tokens"] == by_ids["tokens"] != bare["tokens"]
    session = load_session(asked)
    assert session.prompt_tokens("red") == [WORDS.index(w) for w in ("what", "red", "is")]


def test_without_words_or_default_there_is_one_line(asked: Path, sound: Path) -> None:
    message = refused("run", asked, sound)
    assert "the model is asked in words, as 'what {prompt} is', and has no default" in message
    assert "--prompt-text" in message


def test_default_words_and_inspect(tmp_path: Path, sound: Path) -> None:
    options = ("--prompt-template", TEMPLATE, "--default-prompt", "colour")
    path = export(tmp_path / "default.bundle", *options)
    (silent,) = records("run", path, sound)
    (by_ids,) = records("run", path, sound, "--prompt", ids("what colour is"))
    (other,) = records("run", path, sound, "--prompt-text", "red")
    assert silent["tokens"] == by_ids["tokens"] != other["tokens"]
    shown = output("inspect", path)
    assert "words for the decoder: 'what {prompt} is', without any 'colour'" in shown
    (sample,) = open_bundle(path).manifest.golden
    assert list(sample.prompt) == [WORDS.index(word) for word in ("what", "colour", "is")]
    output("verify", path)


def test_a_bundle_without_a_template_is_written_as_before(answerer_manifest: bytes) -> None:
    assert b"prompt_template" not in answerer_manifest
    assert b'"prompt"' not in answerer_manifest and b'"template"' not in answerer_manifest


@pytest.fixture
def answerer_manifest(tiny_path: Path) -> bytes:
    return (tiny_path / "manifest.json").read_bytes()


def test_bad_templates_are_refused(tmp_path: Path) -> None:
    run = ("export", f"{__name__}:asked_job", "-o", tmp_path / "x.bundle")
    assert "has {prompt} once" in refused(*run, "--prompt-template", "no place")
    assert "has {prompt} once" in refused(*run, "--prompt-template", "{prompt} {prompt}")
    assert "needs a prompt template" in refused(*run, "--default-prompt", "red")
    tiny = "hybrid_deploy.export.reference.job:pooled"
    result = invoke(
        "export", tiny, "-o", tmp_path / "y.bundle", "--prompt-template", "say {prompt}"
    )
    assert result.exit_code == 2
    assert "a prompt template needs a tokenizer" in result.stderr
    assert not (tmp_path / "y.bundle").exists()


def test_export_model_takes_a_tokenizer_and_a_template(tmp_path: Path, sound: Path) -> None:
    arguments = {
        "max_length": MAX_LENGTH,
        "start_tokens": 1,
        "preprocess": AudioInput("input_values", 16000, Waveform(normalize=True)),
        "vocabulary": Tokenizer("tokenizer.json"),
        "prompt_template": TEMPLATE,
        "default_prompt": "red",
    }
    inputs, path = torch.zeros(1, SAMPLES), tmp_path / "m.bundle"
    with pytest.raises(UsageError, match=r"tokenizer's file tokenizer.json is not among the files"):
        export_model(seeded(TinyListener), inputs, path, **arguments)  # type: ignore[arg-type]
    files = {"tokenizer.json": tokenizer()}
    export_model(seeded(TinyListener), inputs, path, files=files, **arguments)  # type: ignore[arg-type]
    prompt = open_bundle(path).manifest.prompt
    assert prompt is not None
    assert msgspec.to_builtins(prompt) == {"text": TEMPLATE, "default": "red"}
    assert output("run", path, sound)
