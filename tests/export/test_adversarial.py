"""Models that look right and are not, or look wrong and are right: each refused truly, or right."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybrid_deploy.errors import ParityError, UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from tests.benchmarks.fuzz_export.compare import Comparison

VOCABULARY, WIDTH, LENGTH = 7, 8, 8


class Plain(nn.Module):
    """One attention layer over tokens and memory, whose parts a subclass replaces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inputs = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(3, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.more, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("count", torch.zeros(()))
        self.kept: Any = None
        self.prepare()
        self.eval()

    def prepare(self) -> None:
        """Changes the module after its layers are made."""

    def encode(self, x: Tensor) -> Tensor:
        return self.memory(torch.tanh(self.inputs(x)))

    def memory(self, x: Tensor) -> Tensor:
        return x

    def rows(self, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
        return x

    def logits(self, x: Tensor) -> Tensor:
        return x

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.rows(self.embedding(tokens), tokens, memory)
        x = x + self._read(x, x, torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril())
        return self.logits(self.head(x + self._read(x, memory, None)))

    def _read(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(memory), self.v(memory), mask)


def model_with(**methods: Callable[..., Any]) -> nn.Module:
    """Returns a `Plain` with other methods."""
    model: nn.Module = type("Nasty", (Plain,), methods)()
    return model


def exported(model: nn.Module, out: Path) -> None:
    example = {"x": torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))}
    dynamic = {"x": {1: ("size", 3, 12)}}
    export_model(
        model, example, out, max_length=LENGTH, start_tokens=1, end_tokens=2, dynamic=dynamic
    )


def count_runs(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    self.count += 1
    changed: Tensor = x * (1 + (self.count > 9))
    return changed


def draw_seeded(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    return x + torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))


def shift_scores(
    self: Any, x: Tensor, tokens: Tensor, memory: Tensor, pad: tuple[int, int] = (1, 0)
) -> Tensor:
    """Adds scores by distance, of two heads that are folded into the batch, shifted to the keys."""
    batch, length, _ = x.shape
    rows = x.view(batch, length, 2, 4).transpose(1, 2).reshape(batch * 2, length, 4)
    distances = torch.linspace(-1, 1, LENGTH * 4).view(LENGTH, 4)[LENGTH - length :]
    scores = F.pad(rows @ distances.transpose(0, 1), pad)
    scores = scores.view(batch * 2, length + 1, length)[:, 1:]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    read = scores.masked_fill(future, -torch.inf).softmax(-1) @ rows
    return x + read.view(batch, 2, length, 4).transpose(1, 2).flatten(2)


def mask_by_places(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    scores = x @ x.transpose(1, 2)
    rows, columns = torch.triu_indices(x.shape[1], x.shape[1], 1)
    scores[..., rows, columns] = -1e9
    return x + scores.softmax(-1) @ x


def keep_memory(self: Any, x: Tensor) -> Tensor:
    self.kept = x
    return x * 1


def script(self: Any) -> None:
    self.more = torch.jit.script(self.more)


def quantize(self: Any) -> None:
    quantized: Any = torch.ao.quantization.quantize_dynamic
    self.more = quantized(nn.Sequential(self.more), {nn.Linear})


def unlike_sizes(self: Any, x: Tensor) -> Any:
    return (x, x.mean(1)) if x.shape[1] > 11 else x


def masked_in_a_loop(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    weights = torch.zeros(x.shape[1], x.shape[1])
    for row in range(x.shape[1]):
        weights[row, : row + 1] = 1.5 / (row + 1)
    return weights @ x


def in_bfloat16(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = F.linear(x, self.more.weight[:VOCABULARY, :VOCABULARY]).float()
    return logits


@functools.lru_cache
def window_of_three(length: int) -> Tensor:
    mask = torch.ones(length, length, dtype=torch.bool)
    return mask.tril() & mask.triu(-2)


def read_in_windows(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    rows: Tensor = x + self._read(x, x, window_of_three(x.shape[1]))
    return rows


def no_value(self: Any, x: Tensor) -> Tensor:
    return x[:, :0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "counter in a buffer": ({"rows": count_runs}, "decode() changes the buffer count in place"),
    "memory in place": (
        {"rows": lambda s, x, t, m: x + m.mul_(0.5)[:, :1]},
        "decode() changes value 0 of its memory in place",
    ),
    "tokens in place": (
        {"rows": lambda s, x, t, m: x + t.add_(1)[..., None]},
        "decode() changes its tokens in place",
    ),
    "tokens in place, as they are": (
        {"rows": lambda s, x, t, m: x + t.clamp_(max=2)[..., None]},
        "decode() changes its tokens in place",
    ),
    "input in place": (
        {"encode": lambda s, x: torch.tanh(s.inputs(x.mul_(2)))},
        "encode() changes its input x in place",
    ),
    "complex memory": (
        {"memory": lambda s, x: torch.view_as_complex(x.unflatten(-1, (4, 2)))},
        "encode() returns complex numbers",
    ),
    "memory among the outputs": (
        {"decode": lambda s, t, m: {"logits": Plain.decode(s, t, m), "memory": m}},
        "output 1 of decode(), behind the logits, does not depend on the tokens",
    ),
    "empty memory": ({"memory": no_value}, "which holds no value"),
    "other memory at other sizes": (
        {"memory": unlike_sizes},
        "the graph has one number of memory tensors",
    ),
    "scripted": ({"prepare": script}, "that PyTorch has scripted or quantized"),
    "quantized": ({"prepare": quantize}, "that PyTorch has scripted or quantized"),
    "random": (
        {"rows": lambda s, x, t, m: x + torch.rand(1)},
        "decode() returns other values in a second run",
    ),
    "random with a seed": ({"rows": draw_seeded}, "it draws random numbers; draw them in __init__"),
    "scores shifted the other way": (
        {"rows": functools.partialmethod(shift_scores, pad=(0, 1))},
        "test_adversarial.py",
    ),
    "a mask by places": ({"rows": mask_by_places}, "a test on random values does not decide it"),
    "random in Python": (
        {"rows": lambda s, x, t, m: x * random.random()},
        "decode() returns other values in a second run",
    ),
    "random in one run of 20": (
        {"rows": lambda s, x, t, m: x * (1.0 if random.random() > 0.05 else 0.5)},
        "decode() returns other values in a second run",
    ),
    "a mask made in a loop": (
        {"rows": masked_in_a_loop},
        "test_adversarial.py:{masked_in_a_loop}:",
    ),
    "chunks of the batch": (
        {"memory": lambda s, x: torch.cat([s.more(part) for part in x.split(2)])},
        "the exported graphs do not work for a batch of 3 (inputs of size 3x",
    ),
    "autocast": ({"logits": in_bfloat16}, "leave out autocast"),
    "unique": (
        {"rows": lambda s, x, t, m: x * m.round().unique().numel()},
        "test_adversarial.py",
    ),
    "a branch on values": (
        {"memory": lambda s, x: x if float(x.max()) < 0.9 else x * 2},
        "encode() cannot be traced: Python control flow depends on the values",
    ),
    "a branch on the batch": (
        {"rows": lambda s, x, t, m: x * 2 if len(x) >= 4 else x},
        "it takes one batch size",
    ),
    "memory kept in self": (
        {"memory": keep_memory, "rows": lambda s, x, t, m: x + s.kept.mean(1, keepdim=True)},
        "a tensor kept from an earlier run",
    ),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates scripting and its own quantization
@pytest.mark.parametrize("name", REFUSED)
def test_a_nasty_model_is_refused_with_the_true_reason(name: str, tmp_path: Path) -> None:
    methods, words = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        exported(model_with(**methods), tmp_path / "out")
    line = inspect.getsourcelines(masked_in_a_loop)[1] + 3
    assert words.format(masked_in_a_loop=line) in str(caught.value)
    assert not (tmp_path / "out").exists()


def hook(self: Any) -> None:
    self.head.register_forward_hook(lambda module, given, out: out * 2)
    self.act = functools.partial(F.gelu, approximate="tanh")
    nn.utils.parametrizations.weight_norm(self.more)


def keys_rotated_after_repetition(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    """Grouped queries whose keys, not values, change after they are repeated for each head."""
    q, k, v = (part.unflatten(-1, (4, 2)).transpose(1, 2) for part in (self.q(x), x, self.v(x)))
    k, v = (part[:, :2].repeat_interleave(2, 1) for part in (k, v))
    angle = torch.arange(x.shape[1])[:, None] / 3
    k = k * angle.cos() + k.flip(-1) * angle.sin()
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return x + F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def gate_sequence_first(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    """Reads a value of the memory whose batch is its second axis: (1, batch, width)."""
    return (x.transpose(0, 1) * memory.mean(1).sigmoid().unsqueeze(0)).transpose(0, 1)


def mask_of_every_head(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    """Adds a mask of the memory, (batch * heads, 1, size), as nn.MultiheadAttention does."""
    batch, size, _ = memory.shape
    mask = torch.where(memory[:, :, 0] > 0, 0.0, -2.0)[:, None, None, :]
    mask = mask.expand(batch, 2, 1, size).reshape(batch * 2, 1, size)
    q, k = (part.view(batch, -1, 2, 4).transpose(1, 2) for part in (self.q(x), memory))
    q, k = (part.reshape(batch * 2, -1, 4) for part in (q, k))
    read = torch.baddbmm(mask, q, k.transpose(1, 2)).softmax(-1) @ k
    return x + read.view(batch, 2, -1, 4).transpose(1, 2).flatten(2)


def halves_of_all_sequences(self: Any, x: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
    """Reads a value of the memory, (2 * batch), whose neighbours are of different sequences."""
    means = memory.mean((1, 2))
    both = torch.cat([x, 2 * x]) + torch.cat([3 * means, means])[:, None, None]
    return torch.tanh(both).view(2, *x.shape).sum(0)


def test_a_memory_whose_rows_are_not_of_one_sequence_each_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="in 2 copies of every input"):
        exported(model_with(rows=halves_of_all_sequences), tmp_path / "out")


def never_ends(self: Any, x: Tensor) -> Tensor:
    return x.index_fill(-1, torch.tensor([2]), -torch.inf)


RIGHT: dict[str, dict[str, Any]] = {
    "a mask in a cache": {"rows": read_in_windows},
    "hooks, partials and parametrizations": {
        "prepare": hook,
        "rows": lambda s, x, t, m: s.act(x) + s.more(x),
    },
    "keys rotated after their repetition": {"rows": keys_rotated_after_repetition},
    "memory with the batch second": {"rows": gate_sequence_first},
    "a mask of every head": {"rows": mask_of_every_head},
    "scores shifted to the keys": {"rows": shift_scores},
    "an impossible end": {"logits": never_ends},
    "logits behind another output": {
        "decode": lambda s, t, m: {"words": s.embedding(t), "logits": Plain.decode(s, t, m)}
    },
    "ties": {"logits": lambda s, x: x.round()},
    "huge logits": {"logits": lambda s, x: x * 1e30},
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_nasty_model_is_right_at_other_sizes(name: str, tmp_path: Path) -> None:
    model = model_with(**RIGHT[name])
    exported(model, tmp_path / "out")
    comparison = Comparison(tmp_path / "out", model, VOCABULARY, LENGTH)
    shapes = ((1, 3, 3), (3, 12, 3))
    draw = np.random.default_rng(2).standard_normal
    comparison.run([{"x": draw(shape).astype(np.float32)} for shape in shapes])
    assert comparison.compared > 50
