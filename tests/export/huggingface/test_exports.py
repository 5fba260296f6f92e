"""Tests exported models of transformers at sizes unlike the example, and what adapters check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf

from hybrid_deploy.errors import UnsupportedModelError, UsageError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.export.huggingface import adapter as adapter_module
from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.registry import ADAPTERS
from hybrid_deploy.export.huggingface.architectures.texts import TextInBlocks
from hybrid_deploy.export.huggingface.replacements.experts import AllSwitchExperts
from hybrid_deploy.runtime.session.session import load_session
from tests.closeness import assert_close_in_float32
from tests.models.zoo.transformers.models import CASES, MODELS, model_and_adapter

LENGTH = 14
_SLOW = (
    "canary",
    "fsmt",
    "longt5-global",
    "moonshine-streaming",
    "pp-formulanet",
    "speecht5",
    "switch",
)
EXPORTED = (
    "pegasus-x",
    "longt5",
    "mvp",
    *(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW),
)
"""Encoders that work on blocks or frames, or whose masks are added to the scores."""


def generated(
    model: hf.PreTrainedModel, inputs: dict[str, Tensor], length: int = LENGTH
) -> list[list[int]]:
    """Returns the greedy tokens of generate(), start token included."""
    config = model.generation_config
    config.eos_token_id = config.forced_eos_token_id = config.max_new_tokens = None
    tokens = hf.GenerationMixin.generate(
        model, **inputs, do_sample=False, num_beams=1, max_length=length, decoder_start_token_id=1
    )
    rows: list[list[int]] = tokens.tolist()
    return rows


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_tokens_are_those_of_generate_at_other_sizes(name: str, tmp_path: Path) -> None:
    model, _ = model_and_adapter(name)
    case = CASES[name]
    export_model(
        model,
        case.inputs(2, case.sizes[0]),
        tmp_path / "b",
        max_length=LENGTH,
        start_tokens=1,
        dynamic={key: {1: axes[0][1:]} for key, axes in case.dynamic.items()},
    )
    session = load_session(tmp_path / "b")
    for size in sizes_of(name):
        inputs = case.inputs(3, size)
        results, _ = session.run_arrays({key: value.numpy() for key, value in inputs.items()})
        rows = generated(model, inputs)
        assert [[1, *result.tokens] for result in results] == rows, size


def sizes_of(name: str) -> tuple[int, ...]:
    """Returns the sizes of a case, and the smallest and the largest that its axis allows."""
    axis = MODELS[name].inputs.axis
    return CASES[name].sizes if axis is None else (*CASES[name].sizes, *axis[1:])


def test_experts_drop_the_tokens_behind_their_capacity_only_in_the_encoder() -> None:
    model, adapted = model_and_adapter("switch")
    layers = [m for m in adapted.modules() if isinstance(m, AllSwitchExperts)]
    assert {layer.capacity for layer in layers} == {8, None}
    sparse: Any = next(
        m for m in model.modules() if type(m).__name__ == "SwitchTransformersSparseMLP"
    )
    rows = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = sparse(rows)
        assert_close_in_float32(AllSwitchExperts(sparse, 8)(rows), expected)
        assert (expected == 0).all(-1).any(), "no token is dropped"
        unlimited = AllSwitchExperts(sparse, None)(rows)
        alone = torch.cat([sparse(rows[:, i : i + 1]) for i in range(rows.shape[1])], 1)
    assert_close_in_float32(unlimited, alone)


def test_the_users_example_reaches_the_adapter(tmp_path: Path) -> None:
    model, _ = model_and_adapter("umt5")
    inputs = CASES["umt5"].inputs(2, 9)
    given = adapt(model, inputs).example
    assert {key: value.shape for key, value in given.items()} == {
        key: value.shape for key, value in inputs.items()
    }
    too_large = {"input_ids": torch.full((1, 5), 10**6), "attention_mask": torch.ones(1, 5).long()}
    with pytest.raises(UnsupportedModelError) as caught:
        export_model(model, too_large, tmp_path / "b", max_length=LENGTH, start_tokens=1)
    assert str(caught.value) == (
        "UMT5ForConditionalGeneration cannot be run token by token on the example: IndexError: "
        "index out of range in self; check the example, or write a class around the model that "
        "has encode() and decode()"
    )
    with pytest.raises(UsageError, match="encode takes the inputs input_ids, attention_mask, got"):
        export_model(model, {"words": inputs["input_ids"]}, tmp_path / "b", max_length=LENGTH)


def test_a_config_without_sizes_asks_for_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizeless(*_: object) -> dict[str, Tensor]:
        raise AttributeError("no size")

    monkeypatch.setattr(adapter_module, "example_inputs", sizeless)
    with pytest.raises(UsageError, match=r"tell the sizes .* give example_inputs: input_ids, att"):
        adapt(MODELS["umt5"].make())


class BlindToPadding(TextInBlocks):
    """Reads padding as words: only an example with padding shows it."""

    def encode(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        ids, mask = inputs
        return super().encode(ids, torch.ones_like(mask))


def test_an_adapter_that_reads_padding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_and_adapter("pegasus-x")
    example = CASES["pegasus-x"].inputs(2, 16)
    example["attention_mask"] = torch.ones_like(example["attention_mask"])
    monkeypatch.setattr(adapter_module, "ADAPTERS", (BlindToPadding, *ADAPTERS))
    with pytest.raises(UnsupportedModelError, match="gives other logits with plain attention"):
        adapt(model, example)


class OwnUMT5(hf.UMT5ForConditionalGeneration):  # type: ignore[misc]
    """A user's class that extends one of transformers."""


def test_a_class_that_extends_a_supported_one_is_adapted() -> None:
    assert adapt(OwnUMT5(MODELS["umt5"].make().config)).input_names == (
        "input_ids",
        "attention_mask",
    )
