"""Tests that plain arguments become a job, or are refused with one line."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid_deploy.bundle.input_specs import ArrayInput, ImageInput
from hybrid_deploy.bundle.manifest import DimRange, GenerationDefaults
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UnsupportedModelError, UsageError
from hybrid_deploy.export.export_job import (
    Arrays,
    GraphForm,
    InputOptions,
    SimpleAxes,
)
from hybrid_deploy.export.exporter import head_of
from hybrid_deploy.export.make_job import (
    dynamic_axes,
    make_job,
    named_inputs,
    padded_to_multiples,
)
from hybrid_deploy.export.model.dynamic_axes import DynamicAxis
from hybrid_deploy.export.model.interface import ADAPTER, check_model


class TwoInputs(nn.Module):
    """Takes an image, a question and, optionally, a scale."""

    def encode(self, image: Tensor, question: Tensor, scale: Tensor | None = None) -> Tensor:
        return image + question

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return memory


def generation(max_length: int, end: tuple[int, ...] = ()) -> GenerationDefaults:
    return GenerationDefaults((), end, pad_token=0, max_length=max_length)


IMAGE, QUESTION = torch.zeros(2, 3, 4), torch.ones(2, 5)


@pytest.fixture
def model() -> nn.Module:
    return TwoInputs().eval()


@pytest.mark.parametrize(
    "inputs",
    [
        [IMAGE, QUESTION],
        (IMAGE.numpy(), QUESTION),
        {"question": QUESTION.numpy(), "image": IMAGE},
    ],
)
def test_inputs_are_named_after_the_parameters_of_encode(model: nn.Module, inputs: Any) -> None:
    named = named_inputs(model, inputs)
    assert list(named) == ["image", "question"]
    assert named["question"].shape == (2, 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (IMAGE, "encode takes 2 inputs (image, question, scale), got 1"),
        ([IMAGE] * 4, "encode takes 2 inputs (image, question, scale), got 4"),
        ({"image": IMAGE}, "encode takes the inputs image, question, scale, got image"),
        ({}, "encode takes the inputs image, question, scale, got none"),
        (
            {"image": IMAGE, "question": QUESTION, "other": IMAGE},
            "encode takes the inputs image, question, scale, got image, question, other",
        ),
        ([IMAGE * math.nan, QUESTION], "the input image of encode holds NaN; give real values"),
        ([IMAGE, [1.0]], "an input of encode must be a tensor or an array, got list"),
        (
            [IMAGE, torch.zeros(3, 5)],
            "the inputs of encode must be batch first and of one batch size, got "
            "image (2, 3, 4), question (3, 5)",
        ),
        (
            [torch.tensor(1.0), torch.tensor(1.0)],
            "the inputs of encode must be batch first and of one batch size, got "
            "image (), question ()",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_inputs(model, inputs)
    assert str(caught.value) == message


def by_keyword(self: Any, *, image: Tensor) -> Tensor:
    return image


def by_name(self: Any, **inputs: Tensor) -> Tensor:
    return inputs["image"]


@pytest.mark.parametrize("encode", [by_keyword, by_name])
def test_an_encode_without_inputs_by_position_is_refused(encode: Any) -> None:
    model = type("Keyword", (nn.Module,), {"encode": encode})()
    with pytest.raises(UsageError, match=r"^encode\(.+\) takes no inputs by position"):
        named_inputs(model, {"image": IMAGE})


def test_a_fixed_batch_that_would_run_for_minutes_is_refused() -> None:
    with pytest.raises(UsageError, match="a fixed batch of 100000 is above 1024"):
        GraphForm(batch=100_000)


def test_varying_axes_as_tuples_and_as_dynamic_axes(model: nn.Module) -> None:
    letters = DynamicAxis("letters", DimRange(1, 2, 9))
    dynamic: SimpleAxes = {
        "image": {1: ("height", 1, 8), 2: ("width", 8, 64, 2)},
        "question": {1: letters},
    }
    job = make_job(model, [IMAGE, QUESTION], generation(9), InputOptions(dynamic=dynamic))
    assert job.spec.dynamic["image"] == {
        1: DynamicAxis("height", DimRange(1, 3, 8)),
        2: DynamicAxis("width", DimRange(8, 8, 64, 2)),  # the example has size 4, below the range
    }
    assert job.spec.dynamic["question"] == {1: letters}


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        (
            {"picture": {3: ("w", 1, 2)}},
            "dynamic names the input picture, the model has image, question",
        ),
        (
            {"image": {0: ("batch", 1, 2)}},
            "dynamic names axis 0 of image, which has axes 1 to 2 besides the batch",
        ),
        (
            {"image": {2: ("w", 8, 8)}},
            "image cannot vary from 8 to 8: it has one size; leave the axis out if the example has "
            "size 8",
        ),
        (
            {"image": {2: ("w", 0, 8)}},
            "image cannot vary from 0 to 8: the smallest size is 1 at least",
        ),
        (
            {"image": {2: ("w", 9, 8)}},
            "image cannot vary from 9 to 8: the smallest size stands first",
        ),
        (
            {"image": {2: ("w", 1, 9_999_999)}},
            "image cannot vary from 1 to 9999999: the export runs the largest size, which is more "
            "than 4096 times the example's 4; give a smaller one, or a larger example",
        ),
        (
            {"image": {2: ("w", 4, 10, 4)}},
            "image varies in multiples of 4, which 4 and 10 must both be; change the range or the "
            "multiple",
        ),
        (
            {"image": {2: ("w", 8, 64, 8)}},
            "axis 2 of the example's image has size 4, which is no multiple of 8; pad it to 8",
        ),
    ],
)
def test_axes_that_do_not_fit_are_refused(model: nn.Module, dynamic: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_job(model, [IMAGE, QUESTION], generation(9), InputOptions(dynamic=dynamic))
    assert str(caught.value) == message


def test_optional_arguments_have_defaults(model: nn.Module) -> None:
    checks: list[Arrays] = [{"question": np.ones((1, 5)), "image": IMAGE[:1]}]
    job = make_job(model, [IMAGE, QUESTION], generation(9, end=(2,)), checks=checks)
    assert job.spec.name == "TwoInputs"
    assert job.spec.preprocess == ArrayInput("image", ("question",))
    assert (job.spec.generation.start_tokens, job.spec.generation.end_tokens) == ((), (2,))
    assert job.form == GraphForm(opset=24, head=Head.LOGITS, batch=None)
    assert list(job.checks[0]) == ["image", "question"]


def test_an_example_and_two_tokens_are_required(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"^TwoInputs needs example_inputs: a tensor for each"):
        make_job(model, None, generation(9))
    with pytest.raises(UsageError, match=r"^max_length is 1; two tokens are the least to decode$"):
        make_job(model, [IMAGE, QUESTION], generation(1))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"opset": 17}, "opset 17 is not supported; choose one of: 24, 21, 18"),
        ({"batch": 0}, "a batch of 0 is not possible; give 1 or more"),
    ],
)
def test_impossible_forms_are_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        GraphForm(**form)
    assert str(caught.value) == message


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^unknown head 'beam'; choose one of: logits, argmax, topk$"
    ):
        head_of("beam")


def test_the_refusal_of_a_model_shows_a_working_adapter(model: nn.Module) -> None:
    class Inner(nn.Module):
        encoder, decoder = nn.Linear(2, 3), nn.Bilinear(2, 3, 4)

    with pytest.raises(UnsupportedModelError) as caught:
        make_job(Inner().eval(), IMAGE, generation(9))
    line, _, code = str(caught.value).partition("\n\n")
    assert line == (
        "Inner has no encode() and no decode(); wrap it in a module with encode(*inputs) -> memory "
        "and the full-sequence decode(tokens, *memory) -> logits, in eval mode:"
    )
    assert code == ADAPTER
    assert len(code.splitlines()) == 8
    names: dict[str, Any] = {"torch": torch}
    exec(code, names)
    adapter = names["Adapter"](Inner()).eval()
    check_model(adapter)
    assert adapter.decode(torch.zeros(1, 2), adapter.encode(torch.zeros(1, 2))).shape == (1, 4)


def test_pictures_are_padded_to_the_multiple_of_their_width(model: nn.Module) -> None:
    picture = ImageInput("image", "L", 8, None, 6, 8, 64, 0, 255, (0.5,), (0.5,))
    axes = dynamic_axes({"image": {3: ("w", 8, 64, 8)}}, {"image": torch.zeros(1, 1, 8, 16)})
    padded = padded_to_multiples((picture, ArrayInput("question")), axes)
    assert isinstance(padded, tuple)
    assert padded == (msgspec.structs.replace(picture, width_multiple=24), ArrayInput("question"))
    assert padded_to_multiples(picture, {}) == picture
