"""Saved folders whose pictures are cut into tiles or a grid: Idefics3, SmolVLM and Qwen2-VL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from hybrid_deploy.bundle.input_specs import EncoderInput, PixelsInput, TilesInput
from hybrid_deploy.cli import main
from hybrid_deploy.errors import InputError
from hybrid_deploy.export.huggingface.folder import ModelFolder
from hybrid_deploy.export.huggingface.processor import input_of
from hybrid_deploy.export.huggingface.prompt import load_processor
from hybrid_deploy.runtime.preprocess.batch_pictures import batch_pictures
from tests.export.huggingface.saved_folders import save_tokenizer
from tests.models.zoo.transformers.base import enlarge_weights

QUESTIONS = ("the quick fox?", "how do you do? I don't know the box")
LONGEST = 60
TILE = 16
SPECIAL = (
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>",
    "<row_1_col_2>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<|im_start|>", "<|im_end|>",
)  # fmt: skip
TILES_CHAT = (
    "<|im_start|>{% for message in messages %}User:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
GRID_CHAT = (
    "{% for message in messages %}<|im_start|>user\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
_GRID = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}


def tiles_processor(name: str, **settings: Any) -> Any:
    defaults = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    return getattr(hf, f"{name}ImageProcessorPil")(**{**defaults, **settings})


def grid_processor(**settings: Any) -> Any:
    sizes = {"patch_size": 4, "merge_size": 2, "min_pixels": 256, "max_pixels": 1024}
    return hf.Qwen2VLImageProcessorPil(**{**sizes, **settings})


def text_of(vocabulary: int) -> dict[str, Any]:
    return {
        **_SIZES, "vocab_size": vocabulary, "num_hidden_layers": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 256, "tie_word_embeddings": False, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip


def save_tiled(name: str, path: Path) -> Path:
    """Writes a tiny Idefics3 or SmolVLM, and returns the folder."""
    tokenizer = save_tokenizer(path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    # a SmolVLMProcessor cannot be made without the part for videos, which needs torchvision
    hf.Idefics3Processor(
        tiles_processor(name), tokenizer, image_seq_len=4, chat_template=TILES_CHAT
    ).save_pretrained(path)
    config_file = path / "processor_config.json"
    config_file.write_text(config_file.read_text().replace("Idefics3Processor", f"{name}Processor"))
    config = getattr(hf, f"{name}Config")(
        vision_config={**_SIZES, "num_hidden_layers": 1, "image_size": TILE, "patch_size": 4},
        text_config={**text_of(len(tokenizer)), "model_type": "llama"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return save_model(getattr(hf, f"{name}ForConditionalGeneration")(config), path)


def save_grid(name: str, path: Path) -> Path:
    """Writes a tiny Qwen2-VL or Qwen2.5-VL without a video processor, and returns the folder."""
    tokenizer = save_tokenizer(path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = GRID_CHAT
    tokenizer.save_pretrained(path)
    grid_processor().save_pretrained(path)
    config_file = path / "preprocessor_config.json"
    settings = json.loads(config_file.read_text()) | {"processor_class": f"{name}Processor"}
    config_file.write_text(json.dumps(settings))
    vision: dict[str, Any] = {**_GRID, "hidden_size": 32, "embed_dim": 32, "mlp_ratio": 2}
    if name == "Qwen2_5_VL":
        windows: dict[str, Any] = {
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "intermediate_size": 48,
        }
        vision = {**_GRID, "depth": 2, "hidden_size": 32, "out_hidden_size": 32, **windows}
    ids = {f"{kind}_token_id": f"<|{kind}_pad|>" for kind in ("image", "video")}
    config = getattr(hf, f"{name}Config")(
        vision_config=vision,
        text_config={**text_of(len(tokenizer)), "rope_parameters": _ROPE},
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )
    return save_model(getattr(hf, f"{name}ForConditionalGeneration")(config), path)


def save_model(model: Any, path: Path) -> Path:
    torch.manual_seed(1)
    enlarge_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 1
    model.save_pretrained(path)
    return path


@pytest.fixture
def _number_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives SmolVLM's processor the package that writes its video prompts, which no test reads."""
    monkeypatch.setattr(hf.models.smolvlm.processing_smolvlm, "num2words", str)


def picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def original(folder: Path, path: Path, words: str) -> tuple[list[int], str]:
    """Returns the tokens and the text that transformers answers with."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(hf, name).from_pretrained(folder).eval()
    processor = load_processor(folder, model.config.model_type)
    content = [{"type": "image", "image": Image.open(path)}, {"type": "text", "text": words}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    row = inputs["input_ids"][0].tolist()
    after = row[::-1].index(model.config.image_token_id)
    tokens = model.generate(**inputs, max_new_tokens=LONGEST - after, do_sample=False)
    tokens = tokens[0, len(row) :]
    return tokens.tolist(), processor.batch_decode(tokens[None], skip_special_tokens=True)[0]


def ours(path: Path, processor: Any, size: tuple[int, int]) -> tuple[EncoderInput, NDArray[Any]]:
    """Returns how a saved processor's pictures enter the encoder, and a picture that did."""
    folder = path.parent / "processor"
    processor.save_pretrained(folder)
    spec = input_of(ModelFolder(folder, {}, None, picture_size=size))
    assert isinstance(spec, (PixelsInput, TilesInput))
    return spec, batch_pictures([path], spec)[spec.name]


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM"])
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((37, 90), {}),
        ((90, 37), {}),
        ((33, 33), {"resample": 3}),
        ((9, 5), {"size": {"longest_edge": TILE}}),
        ((50, 21), {"do_image_splitting": False}),
        ((50, 21), {"do_resize": False}),
        ((21, 50), {"size": {"height": 40, "width": 30}, "do_normalize": False}),
    ],
)
def test_tiles_equal_those_of_transformers(
    name: str, size: tuple[int, int], settings: dict[str, Any], tmp_path: Path
) -> None:
    path, processor = picture(tmp_path / "p.png", *size), tiles_processor(name, **settings)
    spec, actual = ours(path, processor, size)
    made = processor(Image.open(path), return_tensors="np", return_row_col_info=True)
    np.testing.assert_array_equal(actual, made["pixel_values"])
    assert isinstance(spec, TilesInput)
    assert (spec.rows, spec.columns) == (max(made["rows"][0][0], 1), max(made["cols"][0][0], 1))


def test_a_very_long_picture_is_limited_as_in_transformers(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png", 300, 11)
    settings = {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 1024}}
    processor = tiles_processor("Idefics3", **settings)
    _, actual = ours(path, processor, (300, 11))
    np.testing.assert_array_equal(
        actual, processor(Image.open(path), return_tensors="np")["pixel_values"]
    )


@pytest.mark.parametrize("size", [(40, 20), (9, 7), (201, 77), (12, 12), (20, 60)])
def test_a_grid_equals_the_one_of_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    path, processor = picture(tmp_path / "p.png", *size), grid_processor()
    _, actual = ours(path, processor, size)
    made = processor(Image.open(path), return_tensors="np")
    ((_, rows, columns),) = made["image_grid_thw"]
    assert actual.shape == (1, 3, 4 * rows, 4 * columns)
    patches, _, _ = processor.patchify(actual[0], 4, 2, 2)
    np.testing.assert_array_equal(patches, made["pixel_values"])


def test_a_picture_of_another_number_of_tiles_is_refused(tmp_path: Path) -> None:
    spec, _ = ours(picture(tmp_path / "p.png", 40, 20), tiles_processor("SmolVLM"), (40, 20))
    tall = picture(tmp_path / "tall.png", 20, 40)
    with pytest.raises(InputError, match="cut into 2 rows of 1 tiles, the model takes 1 rows of"):
        batch_pictures([tall], spec)  # type: ignore[arg-type]


def test_one_side_alone_is_refused(tmp_path: Path) -> None:
    refused = invoke("export", tmp_path, "-o", tmp_path / "b.bundle", "--width", 40)
    assert refused.exit_code == 2 and "give both, as in --width 640" in refused.stderr


SAVE = {
    "SmolVLM": save_tiled,
    "Idefics3": save_tiled,
    "Qwen2VL": save_grid,
    "Qwen2_5_VL": save_grid,
}


@pytest.mark.usefixtures("_number_words")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("Idefics3", "Qwen2VL") else [])
        for name in SAVE
    ],
)
def test_answers_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    folder, out = SAVE[name](name, tmp_path / "m"), tmp_path / "b.bundle"
    size = ("--width", 40, "--height", 20)
    made = invoke("export", folder, "-o", out, "--max-length", LONGEST, *size)
    assert made.exit_code == 0, made.output
    answers = set()
    for seed, (width, height) in enumerate([(40, 20), (66, 33)]):
        path = picture(tmp_path / f"{seed}.png", width, height, seed)
        for words in QUESTIONS:
            result = invoke("run", out, path, "--prompt-text", words, "--format", "json")
            assert result.exit_code == 0, result.output
            (record,) = json.loads(result.stdout)
            assert (record["tokens"], record["text"]) == original(folder, path, words)
            answers.add(tuple(record["tokens"]))
    assert len(answers) == 4, "every picture and question must have an answer of its own"
    square = picture(tmp_path / "square.png", 30, 30)
    refused = invoke("run", out, square, "--prompt-text", QUESTIONS[0])
    assert refused.exit_code == 2 and "--width and --height of such a picture" in refused.stderr
