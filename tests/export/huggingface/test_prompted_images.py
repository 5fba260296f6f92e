"""Models whose encoder reads the prompt: the tokens of generate() for pictures and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from PIL import Image

from hybrid_deploy.cli import main
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.session.session import load_session
from tests.export.huggingface.saved_folders import save_tokenizer
from tests.models.zoo.transformers.base import enlarge_weights
from tests.models.zoo.vision_language.prompted import (
    CASES,
    IMAGE,
    MODELS,
    PATCHES,
    QUERIES,
    asked,
    instructblip_t5,
    model_and_adapter,
    paligemma,
)

ANSWER = 12
SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "instructblip-t5" else SLOW) for name in MODELS],
)
def test_tokens_equal_generate(name: str, tmp_path: Path) -> None:
    model, adapter = model_and_adapter(name)
    case, original = CASES[name], model
    export_model(
        adapter, case.inputs(2, 6), tmp_path / "b", max_length=ANSWER + 1, start_tokens=1,
        dynamic={
            name: {axis: (dim, small, large) for axis, dim, small, large in axes}
            for name, axes in case.dynamic.items()
        },
    )  # fmt: skip
    session = load_session(tmp_path / "b")
    answers = set()
    for seed in (1, 2):
        for length in (5, 11):
            inputs = asked(name, 1, length, seed)
            kinds = {"token_type_ids": 0 * inputs["input_ids"]} if "paligemma" in name else {}
            generate: Any = original.generate
            expected = generate(
                **inputs, **kinds, max_new_tokens=ANSWER, do_sample=False, eos_token_id=None,
                num_beams=1,
            )[0, -ANSWER:].tolist()  # fmt: skip
            arrays = {key: value.numpy() for key, value in inputs.items()}
            (result,), _ = session.run_arrays(arrays)
            assert list(result.tokens) == expected
            answers.add(result.tokens)
    assert len(answers) == 4, "every picture and prompt must have an answer of its own"
    if "attention_mask" not in case.inputs(1, 6):
        return  # texts of unlike lengths do not form a batch
    both = asked(name, 2, 11, 1)
    results, _ = session.run_arrays({key: value.numpy() for key, value in both.items()})
    for row, result in enumerate(results):
        kept = both["attention_mask"][row].sum()
        alone = {k: v[row : row + 1] for k, v in both.items()}
        for key, value in alone.items():
            if key.startswith("qformer"):
                alone[key] = value[:, : kept - 4]
            elif value.dim() == 2:
                alone[key] = value[:, :kept]
        (single,), _ = session.run_arrays({key: value.numpy() for key, value in alone.items()})
        assert single.tokens == result.tokens, "padding must not matter"


def save_paligemma(path: Path) -> Path:
    """Writes a tiny PaliGemma with its processor, and returns the folder."""
    path.mkdir()
    tokenizer = save_tokenizer(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_processor = hf.SiglipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    image_processor.image_seq_length = PATCHES
    processor = hf.PaliGemmaProcessor(image_processor, tokenizer)
    processor.save_pretrained(path)
    torch.manual_seed(1)
    model: Any = enlarge_weights(
        paligemma("gemma", vocab_size=len(tokenizer) + 1, image_token=processor.image_token_id)
    )
    with torch.no_grad():  # so that the answers to all pictures and questions differ
        model.model.multi_modal_projector.linear.weight.mul_(4)
        for parameter in model.model.language_model.layers.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 1
    model.save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_words_reach_the_encoder_of_a_saved_folder(tmp_path: Path) -> None:
    folder, out = save_paligemma(tmp_path / "m"), tmp_path / "b.bundle"
    arguments = ["export", str(folder), "-o", str(out), "--max-length", str(ANSWER + 1)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    processor: Any = hf.AutoProcessor.from_pretrained(folder)
    model: Any = hf.PaliGemmaForConditionalGeneration.from_pretrained(folder).eval()
    answers = set()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        picture = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(picture)
        for words in ("the fox?", "how do you do? I don't know the box"):
            image, text = Image.open(picture), f"<image>{words}"
            inputs = processor(images=image, text=text, return_tensors="pt")
            length = inputs["input_ids"].shape[1]
            tokens = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)[0, length:]
            run = ["run", str(out), str(picture), "--prompt-text", words, "--format", "json"]
            result = CliRunner().invoke(main, run)
            assert result.exit_code == 0, result.output
            (record,) = json.loads(result.stdout)
            assert record["tokens"] == tokens.tolist()
            assert record["text"] == processor.decode(tokens, skip_special_tokens=True)
            answers.add(tuple(record["tokens"]))
    assert len(answers) == 4
    shown = CliRunner().invoke(main, ["inspect", str(out)]).stdout
    assert "words for the encoder's input_ids: " in shown
    missing = CliRunner().invoke(main, ["run", str(out), str(picture)])
    assert "takes a text with" in missing.stderr and missing.exit_code == 2


def save_instructblip(path: Path) -> Path:
    """Writes a tiny InstructBLIP with a T5 and both of its tokenizers, and returns the folder."""
    for folder in (path, path / "words"):
        folder.mkdir()
    tokenizer, words = save_tokenizer(path), save_tokenizer(path / "words", "wordpiece")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_processor = hf.BlipImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    hf.InstructBlipProcessor(
        image_processor, tokenizer, words, num_query_tokens=QUERIES
    ).save_pretrained(path)
    torch.manual_seed(0)
    model: Any = enlarge_weights(
        instructblip_t5(len(tokenizer) + 1, len(words), tokenizer.convert_tokens_to_ids("<image>"))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.2)
    settings = {"eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    model.generation_config.update(**settings)
    model.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_both_readers_of_instructblip_get_the_words(tmp_path: Path) -> None:
    """The Q-Former reads them with a tokenizer of its own, the T5 with the model's."""
    folder, out = save_instructblip(tmp_path / "m"), tmp_path / "b.bundle"
    arguments = ["export", str(folder), "-o", str(out), "--max-length", str(ANSWER + 1)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    processor: Any = hf.AutoProcessor.from_pretrained(folder)
    model: Any = hf.InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    answers = set()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
        picture = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(picture)
        for words in ("the fox", "how do you do? box"):
            inputs = processor(images=Image.open(picture), text=words, return_tensors="pt")
            settings = {"eos_token_id": 2, "decoder_start_token_id": 1, "num_beams": 1}
            tokens = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False, **settings)
            run = ["run", str(out), str(picture), "--prompt-text", words, "--format", "json"]
            result = CliRunner().invoke(main, run)
            assert result.exit_code == 0, result.output
            (record,) = json.loads(result.stdout)
            assert record["tokens"] == tokens[0, 1:].tolist()
            answers.add(tuple(record["tokens"]))
    assert len(answers) == 4
