"""Tests that adapted Hugging Face models compute their own logits and greedy tokens."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers", reason="Hugging Face models need the extra 'hf'")

import transformers as hf

from hybrid_deploy.errors import InputError, UnsupportedModelError
from hybrid_deploy.export.huggingface.adapter import adapt, incremental_copy_if_equal, load
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.closeness import assert_close_in_float32
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.eager import EagerBackend
from tests.models.zoo.own_class import OWN_CLASS, CnnWithGpt2
from tests.models.zoo.reference import Scenario, compare, greedy
from tests.models.zoo.transformers.models import CASES, MODELS, model_and_adapter

LENGTH = 14
STEPPED = ("beit-gpt2", "whisper", "bart", "t5", "umt5", "switch", "t5gemma")
"""A model of each kind, since tracing takes seconds; `make zoo` checks all models."""


@lru_cache(maxsize=1)  # pytest runs the tests of one model after another
def built(name: str) -> tuple[hf.PreTrainedModel, HuggingFaceModel]:
    return model_and_adapter(name)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"switch"}))
@torch.no_grad()
def test_logits_are_those_of_the_models_own_forward(name: str) -> None:
    model, adapted = built(name)
    inputs = CASES[name].inputs(3, CASES[name].sizes[-1])
    assert tuple(inputs) == adapted.input_names == tuple(adapted.example)
    tokens = torch.randint(1, VOCABULARY, (3, LENGTH))
    expected = own_logits(model, inputs, tokens)
    actual = adapted.decode(tokens, *adapted.encode(*inputs.values()))
    assert actual.shape == (3, LENGTH, VOCABULARY)
    assert_close_in_float32(actual, expected)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name: str) -> None:
    model, adapted = built(name)
    distinct = set()
    for size in CASES[name].sizes[:2]:
        inputs = CASES[name].inputs(3, size)
        for index, row in enumerate(generated(model, inputs)):
            alone = {key: value[index : index + 1] for key, value in inputs.items()}
            tokens, _ = greedy(adapted, alone, row[:1], len(row) - 1)
            assert tokens.tolist() == row[1:], (size, index)
            distinct.add(tuple(row))
    assert len(distinct) > 2, "the input has no effect"


@pytest.mark.parametrize("name", STEPPED)
def test_every_step_equals_the_full_run(name: str) -> None:
    _, adapted = built(name)
    case = dataclasses.replace(CASES[name], max_length=LENGTH)
    comparison = compare(
        case, adapted, EagerBackend(case, adapted).start, [Scenario(case.sizes[-1], (1, 4, 2))]
    )
    assert comparison.passed, comparison


def own_logits(model: hf.PreTrainedModel, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Returns the logits of the model's forward, called as in its documentation.

    Switch is left out: its forward drops tokens of the decoder, and `generate()` does not.
    """
    if model.config.model_type == "blip":
        logits: Tensor = model(**inputs, input_ids=tokens).logits
    else:
        # with a cache, FSMT's forward has no causal mask
        logits = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits
    return logits


def generated(model: hf.PreTrainedModel, inputs: dict[str, Tensor]) -> list[list[int]]:
    """Returns the tokens of generate(), start token included, without padding after the end."""
    config = model.generation_config
    config.eos_token_id = config.forced_eos_token_id = config.max_new_tokens = None
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_length": LENGTH}
    own = {key: value.clone() for key, value in inputs.items()}  # some encoders change them
    if isinstance(model, hf.BlipForConditionalGeneration):
        return [until_end(row) for row in model.generate(**own, **options).tolist()]
    # the generate() of Whisper and SeamlessM4T needs checkpoints with languages
    tokens = hf.GenerationMixin.generate(model, **own, **options, decoder_start_token_id=1)
    assert tokens.shape == (3, LENGTH)
    rows: list[list[int]] = tokens.tolist()
    return rows


def until_end(row: list[int]) -> list[int]:
    """Returns a row up to its first token 2, the separator, which always ends BLIP's generate()."""
    return row[: row.index(2) + 1] if 2 in row else row


def test_the_model_itself_does_not_change() -> None:
    model = model_and_adapter("vit-roberta")[0].train()
    before = {name: type(module) for name, module in model.named_modules()}
    config = model.config.to_dict()
    adapted = adapt(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert model.config.to_dict() == config
    assert model.decoder.config._attn_implementation == "sdpa"
    assert model.training and not adapted.training
    shared = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in adapted.parameters()} == shared


def test_a_padding_token_has_the_position_that_generate_gives_it() -> None:
    model, adapted = built("vit-roberta")
    inputs = CASES["vit-roberta"].inputs(1, 32)
    tokens = torch.tensor([[1, 7, 0, 0, 9]])  # a model may produce padding between other tokens
    with torch.no_grad():
        memory = model.encoder(**inputs)
        cache, steps = None, []
        for index in range(tokens.shape[1]):
            out = model(
                encoder_outputs=memory,
                decoder_input_ids=tokens[:, index : index + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            steps.append(out.logits[:, -1])
        actual = adapted.decode(tokens, *adapted.encode(*inputs.values()))
    assert_close_in_float32(actual, torch.stack(steps, 1))


def test_sound_of_any_length_is_padded_to_whole_frames() -> None:
    model, adapted = built("moonshine-streaming")
    inputs = CASES["moonshine-streaming"].inputs(3, 3250)
    whole = {key: F.pad(value, (0, 30)) for key, value in inputs.items()}  # frames of 80 samples
    for index, row in enumerate(generated(model, whole)):
        alone = {key: value[index : index + 1] for key, value in inputs.items()}
        tokens, _ = greedy(adapted, alone, row[:1], len(row) - 1)
        assert tokens.tolist() == row[1:]


def test_a_users_class_around_a_hugging_face_decoder() -> None:
    (case,) = OWN_CLASS
    model = case.model()
    copy = incremental_copy_if_equal(model, case.inputs(2, case.sizes[0]))
    assert copy is not model
    start = EagerBackend(case, copy).start
    assert compare(case, model, start, [Scenario(32, (1, 3, 2))], steps=LENGTH).passed


class Deceptive(CnnWithGpt2):
    """Returns other logits after it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = id(self)

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return super().decode(tokens, memory) + float(self.identity != id(self))


def test_a_copy_with_other_logits_is_not_used() -> None:
    model = Deceptive().eval()
    assert incremental_copy_if_equal(model, OWN_CLASS[0].inputs(2, 32)) is model


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"call model\.float\(\) first"):
        adapt(MODELS["bart"].make().half())


def test_a_folder_is_loaded_with_the_class_that_it_names(tmp_path: Path) -> None:
    model = model_and_adapter("mbart")[0]
    model.half().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is hf.MBartForConditionalGeneration
    assert not loaded.training
    inputs = CASES["mbart"].inputs(1, 8)
    tokens = torch.randint(1, VOCABULARY, (1, LENGTH))
    with torch.no_grad():
        expected = own_logits(model.float(), inputs, tokens)
        actual = own_logits(loaded, inputs, tokens)
    assert actual.dtype == torch.float32
    assert_close_in_float32(actual, expected)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BartModel"]}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.* safe_serialization"):
        load(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; give a folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no model\.safetensors; give a folder"):
        load(tmp_path)


def test_a_class_that_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["TheirOwnModel"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        UnsupportedModelError, match="TheirOwnModel is not a model that hybrid-deploy"
    ):
        load(tmp_path)
