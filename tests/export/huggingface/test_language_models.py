"""Tests language models that read an image or a sound before the text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf

from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.image_grids import PlacedFeatures
from hybrid_deploy.export.huggingface.architectures.language_models import FeaturesBeforeText
from hybrid_deploy.runtime.session.session import load_session
from tests.models.zoo.eager import EagerBackend
from tests.models.zoo.reference import Scenario, compare, greedy
from tests.models.zoo.vision_language.models import (
    AFTER,
    BEFORE,
    CASES,
    MODELS,
    PLACEHOLDER,
    adapted,
    inputs_of,
    onevision,
    original,
    template_of,
)

LENGTH = 14
PROMPTS = ((29, 31), (29, 5, 60, 41, 8))
"""Tokens behind the image, the template's AFTER included."""

STEPPED = ("git", "kosmos2", "blip2", "qwen2-audio", "qwen2.5-vl")
EXPORTED = ("llava", pytest.param("qwen2.5-vl", marks=pytest.mark.slow))
"""Models that are exported to ONNX; the step of others is derived in PyTorch."""


def generated(
    model: hf.PreTrainedModel,
    adapter: FeaturesBeforeText,
    inputs: dict[str, Tensor],
    prompt: tuple[int, ...],
) -> list[int]:
    """Returns the greedy tokens of the model's own generate(), without the prompt."""
    ids = torch.tensor([[*adapter.prefix_tokens, *prompt]])
    own = adapter.own_inputs(ids, **inputs)
    count = LENGTH - len(prompt)
    part: Any = model.text_model if hasattr(model, "text_model") else model
    part.generation_config.eos_token_id = None
    tokens: Any = model.generate(
        **own,
        attention_mask=torch.ones_like(own["input_ids"]),
        max_new_tokens=count,
        do_sample=False,
    )
    row: list[int] = tokens[0, -count:].tolist()
    return row


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model = original(name)
    adapter = adapted(name, model)
    expected = set()
    for seed in (6, 7):
        inputs = inputs_of(name, 1, seed)
        for prompt in PROMPTS:
            row = generated(model, adapter, inputs, prompt)
            tokens, _ = greedy(adapter, inputs, list(prompt), LENGTH - len(prompt))
            assert tokens.tolist() == row, (seed, prompt)
            expected.add(tuple(row))
    assert len(expected) == 4, "image or prompt have no effect"


@pytest.mark.parametrize("name", STEPPED)
def test_every_step_equals_the_full_run(name: str) -> None:
    model = adapted(name, original(name))
    case = dataclasses.replace(CASES[name], max_length=LENGTH)
    comparison = compare(case, model, EagerBackend(case, model).start, [Scenario(0, (1, 4, 2))])
    assert comparison.passed, comparison


@pytest.mark.parametrize("name", EXPORTED)
def test_one_image_is_asked_several_questions(name: str, tmp_path: Path) -> None:
    model = original(name)
    adapter = adapted(name, model)
    assert adapter.prefix_tokens[: len(BEFORE)] == BEFORE
    export_model(
        model,
        {**inputs_of(name, 2), **template_of(name)},
        tmp_path / "b",
        max_length=LENGTH,
        start_tokens=list(adapter.tokens_after),
    )
    session = load_session(tmp_path / "b")
    for seed in (6, 7):
        inputs = inputs_of(name, 1, seed)
        for prompt in PROMPTS:
            arrays = {key: value.numpy() for key, value in inputs.items()}
            (result,), _ = session.run_arrays(arrays, prompt=prompt[len(AFTER) :])
            assert list(result.tokens) == generated(model, adapter, inputs, prompt), (seed, prompt)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "too-few-placeholders": (
        "llava",
        {"input_ids": torch.tensor([[1, PLACEHOLDER, PLACEHOLDER, 5]])},
        "input_ids has 2 placeholders, and pixel_values give 16 features; give the input_ids of "
        "the model's processor, with a placeholder for each feature",
    ),
    "two-templates": (
        "blip2",
        {"input_ids": torch.tensor([[1] + [PLACEHOLDER] * 6, [2] + [PLACEHOLDER] * 6])},
        "the rows of input_ids differ; all images follow one template, so give one row",
    ),
    "sizes-of-images": (
        "llava",
        {"image_sizes": torch.tensor([[16, 16]])},
        "image_sizes gives each image a size of its own; leave it out, and give images that are "
        "resized to one size",
    ),
    "padded-tiles": (
        "smolvlm",
        {"pixel_attention_mask": torch.zeros(2, 2, 16, 16)},
        "pixel_values (2, 2, 3, 16, 16) must be whole tiles of equal number, (batch, tiles, "
        "channels, height, width), none of them padded",
    ),
    "unknown-size-of-the-image": (
        "llava-next",
        {},
        "pixel_values must be tiles (batch, tiles, channels, height, width), with one image_sizes "
        "(1, 2) for all: height and width of the image before it was cut",
    ),
    "unmarked-places": (
        "kosmos2",
        {"input_ids": torch.tensor([[1, 4, 5]])},
        "input_ids needs image_embeds_position_mask, 1 where an image feature stands; give both as "
        "the model's processor makes them",
    ),
    "sounds-of-two-lengths": (
        "qwen2-audio",
        {"feature_attention_mask": torch.ones(2, 32).long().tril(30)},
        "the rows of feature_attention_mask differ; all sounds have one length, so pad or cut them "
        "to it",
    ),
    "image-between-patches": (
        "qwen2-vl",
        {"pixel_values": torch.zeros(1, 3, 16, 20)},
        "pixel_values are images of (16, 20) pixels; give a height and a width that are multiples "
        "of 8",
    ),
    "patches-without-grid": (
        "qwen2-vl",
        {"pixel_values": torch.zeros(1, 24, 96)},
        "pixel_values must be images (batch, channels, height, width), or patches (batch, patches, "
        "values) with one image_grid_thw for all of them",
    ),
    "another-grid": (
        "qwen2-vl",
        {"pixel_values": torch.zeros(1, 24, 96), "image_grid_thw": torch.tensor([[1, 4, 4]])},
        "image_grid_thw [1, 4, 4] has 16 patches, pixel_values have 24",
    ),
}
"""By name: model, what its example has in addition, and the message."""


@pytest.mark.parametrize("case", REFUSED)
def test_an_example_that_does_not_fit_is_refused_in_one_line(case: str) -> None:
    name, wrong, message = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        adapt(original(name), {**inputs_of(name, 2), **wrong})
    assert str(caught.value) == message


def test_averaged_features_are_refused() -> None:
    example = {**inputs_of("llava-onevision", 1), **template_of("llava-onevision")}
    with pytest.raises(UsageError) as caught:
        adapt(onevision(most_tiles=1).eval(), example)
    assert str(caught.value) == (
        "4 tiles are so many that the model averages their features; give an image of fewer tiles"
    )


def test_the_number_of_tiles_cannot_vary(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export_model(
            original("smolvlm"),
            inputs_of("smolvlm", 2),
            tmp_path / "b",
            max_length=LENGTH,
            start_tokens=1,
            dynamic={"pixel_values": {1: ("tiles", 1, 5)}},
        )
    assert str(caught.value) == (
        "pixel_values cannot vary: SmolVLMForConditionalGeneration has a fixed number of rows "
        "before the text; leave dynamic out, and give images or sounds of one size"
    )


@pytest.mark.parametrize("name", ["llava", "kosmos2"])
def test_without_a_template_the_first_token_stands_before_the_features(name: str) -> None:
    adapter: Any = adapt(original(name), inputs_of(name, 1))
    assert adapter.prefix_tokens[0] == BEFORE[0]
    assert len(adapter.prefix_tokens) == 1 + adapter.placeholder_count
    assert adapter.tokens_after == ()


def test_the_example_is_made_from_the_config() -> None:
    assert adapt(original("llava")).example["pixel_values"].shape == (1, 3, 16, 16)
    assert adapt(original("qwen2-audio")).example["input_features"].shape == (1, 8, 32)


def test_a_shorter_sound_has_fewer_features() -> None:
    model = original("qwen2-audio")
    inputs = inputs_of("qwen2-audio", 1)
    mask = (torch.arange(32) < 21).long()[None]
    adapter: Any = adapt(model, {**inputs, "feature_attention_mask": mask})
    assert adapter.placeholder_count == 5
    tokens, _ = greedy(adapter, inputs, [5], 4)
    ids = torch.tensor([[*adapter.prefix_tokens, 5]])
    own: Any = adapter.own_inputs(ids, **inputs)
    with torch.no_grad():
        assert int(tokens[0]) == int(model(**own).logits[0, -1].argmax())


def test_patches_are_those_of_the_processor() -> None:
    adapter = adapted("qwen2-vl", original("qwen2-vl"))
    assert isinstance(adapter, PlacedFeatures)
    image = torch.randint(0, 256, (3, 16, 24), generator=torch.Generator().manual_seed(0))
    processor = hf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, do_resize=False, do_rescale=False, do_normalize=False
    )
    expected = processor(image.byte().numpy(), return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 4, 6]]
    patches = adapter.patches_of(image[None].float())
    assert torch.equal(patches[0], expected["pixel_values"].float())


def test_patches_of_the_processor_are_read_as_well() -> None:
    model = original("qwen2-vl")
    images = adapted("qwen2-vl", model)
    assert isinstance(images, PlacedFeatures)
    inputs = inputs_of("qwen2-vl", 2)
    rows = images.patches_of(inputs["pixel_values"])
    grid = torch.tensor([[1, 4, 6]])
    patches = adapt(
        model, {"pixel_values": rows, "image_grid_thw": grid, **template_of("qwen2-vl")}
    )
    with torch.no_grad():
        (expected,), (actual,) = images.encode(*inputs.values()), patches.encode(rows)
    assert torch.equal(actual, expected)
