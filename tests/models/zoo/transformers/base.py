"""What the tiny models of transformers share: sizes of their configs, and their cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hybrid_deploy.export.huggingface.adapter import adapt
from hybrid_deploy.export.huggingface.architectures.base import HuggingFaceModel
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_floats

POSITIONS = 80
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
UNTIED = {"tie_word_embeddings": False}  # tied weights make a token follow itself too often
LAYERS = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "max_position_embeddings": POSITIONS,
    "forced_eos_token_id": None,
    **LAYERS,
    **TOKENS,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    **TOKENS,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Inputs:
    """The encoder inputs of a tiny model.

    Attributes:
        make: function of (batch, size) that returns the inputs by name.
        sizes: sizes to check.
        axis: name, smallest and largest size of the axis 1 of `first` and of the mask; None if
            the size is fixed.
        first: name of the input that the mask belongs to.
    """

    make: Callable[[int, int], dict[str, Tensor]]
    sizes: tuple[int, ...]
    axis: tuple[str, int, int] | None = None
    first: str = ""

    def dynamic(self) -> dict[str, tuple[tuple[int, str, int, int], ...]]:
        """Returns the varying axes in the form of a case."""
        if self.axis is None:
            return {}
        axis = ((1, *self.axis),)
        return {self.first: axis, "attention_mask": axis}


@dataclass(frozen=True)
class Tiny:
    """A tiny model of transformers.

    Attributes:
        make: function that builds the model with the initial weights of transformers.
        inputs: its encoder inputs.
        gain: factor of the matrices with which tokens vary, and float32 rounding stays small.
        seed: seed of the weights; with some seeds a greedy decoder repeats one token.
    """

    make: Callable[[], PreTrainedModel]
    inputs: Inputs
    gain: float = 2.0
    seed: int = 0

    def case(self, name: str) -> Case:
        """Returns the case of the model's adapter."""
        return Case(
            name=f"hf-{name}",
            family="huggingface",
            make=lambda: adapt(enlarge_weights(self.make())),
            inputs=self.inputs.make,
            sizes=self.inputs.sizes,
            dynamic=self.inputs.dynamic(),
            gain=self.gain,
            seed=self.seed,
        )

    def model_and_adapter(self) -> tuple[PreTrainedModel, HuggingFaceModel]:
        """Returns the model with the weights of its case, and its adapter, which shares them."""
        originals: list[PreTrainedModel] = []
        adapters: list[HuggingFaceModel] = []

        def make() -> HuggingFaceModel:
            originals.append(enlarge_weights(self.make()))
            adapters.append(adapt(originals[0]))
            return adapters[0]

        dataclasses.replace(self.case(""), make=make).model()
        return originals[0].eval(), adapters[0]


@torch.no_grad()
def enlarge_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Enlarges a model's matrices: with initial weights the input has almost no effect."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, (parameter.numel() / len(parameter)) ** -0.5)
    return model


def seq2seq(model: Any, config: Any, **options: Any) -> PreTrainedModel:
    """Returns a model with the interface of BART; its bias of the logits has an effect."""
    built: PreTrainedModel = model(config(**{**BART, **options}))
    bias = getattr(built, "final_logits_bias", None)
    if bias is not None:
        bias.copy_(random_floats(*bias.shape))
    return built


def padding(batch: int, size: int, unit: int = 2) -> Tensor:
    """Returns a mask (batch, size) int64: the last row is full, each earlier one shorter."""
    lengths = torch.tensor([max(unit, size - unit * (batch - 1 - row)) for row in range(batch)])
    return (torch.arange(size)[None] < lengths[:, None]).long()


Models = Mapping[str, Tiny]
"""Tiny models by name."""
