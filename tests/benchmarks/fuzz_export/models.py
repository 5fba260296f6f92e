"""A random encoder-decoder model for every seed, with an example and other inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.fuzz_export.attention import (
    LONGEST,
    CrossAttention,
    PrefixLayer,
    SelfAttention,
)
from tests.benchmarks.fuzz_export.choices import Choices
from tests.benchmarks.fuzz_export.encoders import FEATURES, HEIGHT, INPUTS, WORDS, Encoder
from tests.benchmarks.fuzz_export.parts import FeedForward, Residual, norm
from tests.benchmarks.fuzz_export.recurrent import RecurrentModel
from tests.benchmarks.fuzz_export.reference import Inputs
from tests.benchmarks.fuzz_export.rows import RowOperation
from tests.benchmarks.fuzz_export.wrong import Wrong

_RANGE = {"image": (8, 40), "features": (5, 24), "ids": (5, 24)}
_AXIS = {"image": 3, "features": 1, "ids": 1}


class Layer(nn.Module):
    """Self-attention, cross-attention and a feed-forward part."""

    def __init__(self, choices: Choices, topic: str, width: int, heads: int) -> None:
        super().__init__()
        self.order = choices.one(f"{topic}.order", ["before", "after"])
        self.norms = nn.ModuleList(norm(choices, f"{topic}.norm{i}", width) for i in range(3))
        self.residuals = nn.ModuleList(Residual(choices, topic, width) for i in range(3))
        self.attention = SelfAttention(choices, topic, width, heads)
        self.cross = CrossAttention(choices, topic, width, heads)
        self.feed_forward = FeedForward(choices, topic, width)

    def forward(self, x: Tensor, tokens: Tensor, memory: Tensor, valid: Tensor | None) -> Tensor:
        parts: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda rows: self.attention(rows, tokens),
            lambda rows: self.cross(rows, memory, valid),
            self.feed_forward,
        )
        for part, standard, residual in zip(parts, self.norms, self.residuals, strict=True):
            before = self.order == "before"
            x = residual(x, part(standard(x) if before else x))
            x = x if before else standard(x)
        return x


class RandomModel(nn.Module):
    """A model with `encode` and `decode` whose parts are drawn.

    Args:
        choices: draws the parts.
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.input = choices.one("input", ["features", "image", "ids"])
        self.variant = choices.one("variant", INPUTS[self.input][:4], INPUTS[self.input])
        width, heads = choices.size(16, 24, 32), choices.size(1, 2, 4)
        self.vocabulary = choices.size(11, 23, 40)
        self.form = choices.one(
            "form",
            ["tensor"] * 4 + ["tuple", "named_heads", "prefix"],
            ["dict", "batch_second", "none_value", "half_model", "double_model", "list_value"],
        )
        self.positions = choices.one(
            "positions",
            ["table", "arange", "sinusoid", "none", "offset"],
            ["reversed", "share", "by_pad", "if_length", "flat_ids"],
        )
        self.start = choices.one("start_rows", ["plain", "scaled", "with_memory"], ["normed"])
        self.last = choices.one(
            "head", ["linear", "tied", "log_softmax", "softcap", "sliced"], ["deep", "permuted"]
        )
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.table = nn.Embedding(LONGEST + 2, width)
        self.encoder = Encoder(choices, self.input, width)
        self.words = nn.Embedding(WORDS, width)
        self.wrong = Wrong(choices.wrong())
        self.before, self.after = (
            RowOperation(choices, f"rows.{place}", width, self.vocabulary) for place in (0, 1)
        )
        self.prefix = PrefixLayer(choices, "prefix", width, heads)
        count = choices.size(1, 1, 1, 2)  # tracing takes most of the time, and grows with layers
        self.layers = nn.ModuleList(Layer(choices, f"{i}", width, heads) for i in range(count))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, self.vocabulary + 1)
        self.deep = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs of encode()."""
        more = {"features_mask": ("valid",), "features_scale": ("scale",), "features_ids": ("ids",)}
        return (self.input, *more.get(self.variant, ()))

    def encode(self, *inputs: Tensor) -> Any:
        memory = self.wrong.memory(self.encoder(inputs[0]))
        if self.variant == "features_ids":
            memory = torch.cat([memory, self.words(inputs[1])], 1)
        if self.variant == "features_scale":
            memory = memory * inputs[1][:, None, None]
        if self.variant == "features_mask" and memory.shape[1] == inputs[0].shape[1]:
            return memory, inputs[1]
        if self.form == "dict":
            return {"memory": memory}
        if self.form == "batch_second":
            return memory.transpose(0, 1)
        if self.form == "none_value":
            return memory, None
        if self.form == "list_value":
            return memory, [memory.mean(1)]
        return (memory, memory.mean(1)) if self.form == "tuple" else memory

    def decode(self, tokens: Tensor, memory: Any, *more: Tensor) -> Any:
        masks = (part for part in more if isinstance(part, Tensor) and part.dtype is torch.bool)
        valid = next(masks, None)
        if self.form == "dict":
            memory = memory["memory"]
        elif more and valid is None and self.form == "tuple":
            memory = memory + more[0][:, None]
        if self.form == "batch_second":
            memory = memory.transpose(0, 1)
        x = self.before(self._embedded(tokens, memory), tokens, memory)
        x = self.wrong.rows(x, tokens)
        if self.form == "prefix":
            places = memory.shape[1]
            x = self.prefix(torch.cat([memory, x], 1), places)[:, places:]
        for layer in self.layers:
            x = layer(x, tokens, memory, valid)
        x = self.after(x, tokens, memory)
        logits = self._logits(x)
        return {"logits": logits, "states": x.tanh()} if self.form == "named_heads" else logits

    def _embedded(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        length = tokens.shape[1]
        if self.start == "scaled":
            x = x * x.shape[-1] ** 0.5 / 4
        if self.start == "with_memory":
            x = x + memory.mean(1, keepdim=True)
        if self.start == "normed":
            x = F.normalize(x, dim=-1) * 3
        numbers = torch.arange(length)
        if self.positions == "table":
            return x + self.table.weight[:length]
        if self.positions == "offset":
            return x + self._position(numbers + 2)
        if self.positions == "sinusoid":
            return x + torch.sin(numbers[:, None] / torch.arange(1, x.shape[-1] + 1))
        if self.positions == "reversed":
            return x + self._position(numbers.flip(0))
        if self.positions == "share":
            return x + (numbers / length)[:, None]
        if self.positions == "by_pad":
            return x + self._position((tokens != 0).long().cumsum(1))
        if self.positions == "if_length":
            return x + self._position(numbers) if length > 4 else x
        if self.positions == "flat_ids":
            return x + self._position(numbers.expand_as(tokens).reshape(-1)).view_as(x)
        return x + self._position(numbers) if self.positions == "arange" else x

    def _position(self, numbers: Tensor) -> Tensor:
        rows: Tensor = self.table(numbers)
        return rows

    def _logits(self, x: Tensor) -> Tensor:
        if self.last == "tied":
            return F.linear(self.norm(x), self.embedding.weight)
        if self.last == "deep":
            x = self.deep(x)
        logits: Tensor = self.head(self.norm(x))[..., : self.vocabulary]
        if self.last == "log_softmax":
            return logits.log_softmax(-1)
        if self.last == "softcap":
            return 9 * torch.tanh(logits / 9)
        if self.last == "permuted":
            return logits.permute(2, 0, 1).flip(0).permute(1, 2, 0)
        return logits


@dataclass(frozen=True)
class Sample:
    """One random model, and what its export gets.

    Attributes:
        model: the model in eval mode.
        example: example inputs of the export, by name.
        dynamic: varying axes of the export.
        batches: inputs of other sizes and batch sizes, all within the declared ranges.
        max_length: largest number of tokens.
        choices: what was drawn, in one line.
        wrong: the fault of the model; "none" for most.
    """

    model: RandomModel | RecurrentModel
    example: Mapping[str, Tensor]
    dynamic: dict[str, dict[int, tuple[str, int, int]]]
    batches: tuple[Inputs, ...]
    max_length: int
    choices: str
    wrong: str

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.model.vocabulary


def random_sample(seed: int, fixed: Mapping[str, str] | None = None) -> Sample:
    """Returns the model of a seed.

    Args:
        seed: seed of the parts, the weights and the inputs.
        fixed: choices that are not drawn, by topic.
    """
    choices = Choices(seed, fixed)
    torch.manual_seed(seed)
    kind = choices.one("kind", ["layers"] * 9 + ["recurrent"])
    model = (RecurrentModel if kind == "recurrent" else RandomModel)(choices)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # PyTorch's own start gives nearly constant logits
                parameter.mul_(2)
    model.train(model.wrong.kind == "train")
    if model.form in ("half_model", "double_model"):
        model.to(torch.float16 if model.form == "half_model" else torch.float64)
    axis, (least, most) = _AXIS[model.input], _RANGE[model.input]
    varies = choices.one("varying", ["yes", "yes", "no"]) == "yes"
    example_size = choices.size(12, 13, 15, 16)
    rng = np.random.default_rng(seed)
    example = _inputs(model, rng, choices.size(1, 2, 3), example_size)
    sizes = (least, most, *(choices.between(least, most) for _ in range(3)))
    batches = [
        _inputs(model, rng, batch, size if varies else example_size)
        for batch, size in zip((1, 2, 3, 5, 1), sizes, strict=True)
    ]
    names = (model.input, "valid") if model.variant == "features_mask" else (model.input,)
    dynamic = {name: {axis: ("size", least, most)} for name in names} if varies else {}
    if varies and model.variant == "features_ids":
        dynamic["ids"] = {1: ("words", *_RANGE["ids"])}
    return Sample(
        model=model,
        example={name: torch.from_numpy(value) for name, value in example.items()},
        dynamic=dynamic,
        batches=tuple(batches),
        max_length=choices.between(6, 12),
        choices=str(choices),
        wrong=model.wrong.kind,
    )


def _inputs(
    model: RandomModel | RecurrentModel, rng: np.random.Generator, batch: int, size: int
) -> Inputs:
    """Returns random inputs by name; a mask hides the end of all inputs but the first."""
    if model.input == "ids":
        return {"ids": rng.integers(0, WORDS, (batch, size))}
    if model.input == "image":
        return {"image": rng.standard_normal((batch, 1, HEIGHT, size)).astype(np.float32)}
    dtype = {"features_double": np.float64, "features_half": np.float16}
    values = rng.standard_normal((batch, size, FEATURES))
    inputs: dict[str, Any] = {"features": values.astype(dtype.get(model.variant, np.float32))}
    if model.variant == "features_mask":
        valid = np.arange(size)[None] < size - np.arange(batch)[:, None] % 4
        inputs["valid"] = valid
    if model.variant == "features_scale":
        inputs["scale"] = rng.uniform(0.5, 2, batch).astype(np.float32)
    if model.variant == "features_ids":
        inputs["ids"] = rng.integers(0, WORDS, (batch, min(size + 1, _RANGE["ids"][1])))
    return inputs
