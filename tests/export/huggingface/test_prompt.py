"""Saved vision-language folders: the processor's prompt, and the answers of the original."""

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

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.cli import main
from hybrid_deploy.errors import ExportError
from hybrid_deploy.export.huggingface.prompt import folder_prompt
from hybrid_deploy.runtime.tokenizer import prompt_tokens_of
from tests.export.huggingface.saved_folders import save_tokenizer

CHAT = (
    "{{ bos_token }}{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QUESTIONS = ("the quick fox?", "how do you do? I don't know the box")
LONGEST = 60


def llava(processor_tokens: int) -> Any:
    """Returns a tiny LLaVA with a CLIP of 16 features and a Llama."""
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = hf.LlamaConfig(
        vocab_size=processor_tokens, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=processor_tokens - 1
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"), CHAT)


def save_llava(path: Path, chat_template: str | None) -> Path:
    """Writes a tiny LLaVA with its processor, and returns the folder."""
    tokenizer = save_tokenizer(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_processor = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = hf.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(path)
    model = llava(len(tokenizer))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 1
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "llava.bundle"
    result = CliRunner().invoke(
        main, ["export", str(folder), "-o", str(out), "--max-length", str(LONGEST)]
    )
    assert result.exit_code == 0, result.output
    return out


def pictures(folder: Path) -> list[Path]:
    paths = []
    for number, size in enumerate([(40, 30), (25, 50)]):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def original(folder: Path, picture: Path, words: str) -> tuple[list[int], str]:
    """Returns the tokens and the text that transformers answers with."""
    processor: Any = hf.AutoProcessor.from_pretrained(folder)
    model: Any = hf.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    image = Image.open(picture)
    if processor.chat_template is None:
        inputs = processor(images=image, text=f"<image>{words}", return_tensors="pt")
    else:
        content = [{"type": "image", "image": image}, {"type": "text", "text": words}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    placeholders = inputs["input_ids"][0].tolist()
    last = len(placeholders) - placeholders[::-1].index(model.config.image_token_id)
    new = LONGEST - (length - last)  # the bundle counts the text after the image
    tokens = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0, length:]
    decoded = processor.batch_decode(tokens[None], skip_special_tokens=True)[0]
    return tokens.tolist(), decoded


def test_answers_are_those_of_the_original(folder: Path, bundle: Path, tmp_path: Path) -> None:
    answers = set()
    for picture in pictures(tmp_path):
        for words in QUESTIONS:
            arguments = ["run", str(bundle), str(picture), "--prompt-text", words]
            result = CliRunner().invoke(main, [*arguments, "--format", "json"])
            assert result.exit_code == 0, result.output
            (record,) = json.loads(result.stdout)
            tokens, text = original(folder, picture, words)
            assert (record["tokens"], record["text"]) == (tokens, text)
            answers.add(tuple(tokens))
    assert len(answers) == 4, "every picture and question must have an answer of its own"


def test_the_template_is_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    prompt = open_bundle(bundle).manifest.prompt
    assert prompt is not None and prompt.text.endswith("{prompt} ASSISTANT:")
    (picture, _) = pictures(tmp_path)
    result = CliRunner().invoke(main, ["run", str(bundle), str(picture)])
    assert (result.exit_code, "the model is asked in words" in result.stderr) == (2, True)
    assert CliRunner().invoke(main, ["verify", str(bundle)]).exit_code == 0


def test_without_a_chat_template_the_processor_writes_the_prompt(tmp_path: Path) -> None:
    folder = save_llava(tmp_path, None)
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    prompt = folder_prompt(folder, model, model.config.image_token_id)
    assert prompt.template.text.strip() == "{prompt}</s>", "this tokenizer ends a text itself"
    processor = hf.AutoProcessor.from_pretrained(folder)
    for words in ("a word", *QUESTIONS):
        ids = processor(images=Image.new("RGB", (9, 9)), text=f"<image>{words}").input_ids[0]
        tokens = prompt_tokens_of(words, prompt.template, processor.tokenizer.backend_tokenizer)
        assert ids[-len(tokens) - 1 :] == [model.config.image_token_id, *tokens]


def test_a_processor_that_fails_is_named(folder: Path, tmp_path: Path) -> None:
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ExportError, match="puts no placeholder 7 for the image into its text"):
        folder_prompt(folder, model, 7)
    save_tokenizer(tmp_path)
    with pytest.raises(ExportError, match=r"cannot be loaded|without a tokenizer"):
        folder_prompt(tmp_path, model, model.config.image_token_id)
