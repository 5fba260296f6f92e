"""Runs a module the plain way, and tells by its numbers alone what kind of model it is.

Nothing here knows the exporter: a row of a batch runs alone, and every number of tokens runs anew.
So it can judge both sides, a bundle that claims to be right and a refusal that claims a flaw.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Inputs = Mapping[str, NDArray[Any]]
Memory = tuple[Tensor, ...]
Logits = NDArray[np.float32]

TOLERANCE = 1e-3
"""Largest accepted difference of a logit, for logits up to 10; float32 sums differ by far less."""


_ROUNDING, _ROUNDED_MODELS = 2e-6, 16  # relative size of a rounding error after several operators


class Flaw(str, Enum):
    """A property because of which a model has no incremental form, or no right value at all."""

    FAILS = "fails"
    RANDOM = "random"
    NOT_FINITE = "not finite"
    MIXES_BATCH = "mixes the batch"
    LOOKS_AHEAD = "looks ahead"
    KNOWS_LENGTH = "knows the length"
    IGNORES_PAST = "ignores the past"
    IGNORES_INPUTS = "ignores the inputs"


BLIND = frozenset({Flaw.IGNORES_PAST, Flaw.IGNORES_INPUTS})
"""Flaws that need no refusal, but make a comparison say little."""


def tolerance(logits: Logits) -> float:
    """Returns the largest accepted difference of these logits."""
    return TOLERANCE * max(1.0, float(np.abs(logits).max()) / 10)


@torch.no_grad()
def jumps(model: Any, memory: Memory, tokens: NDArray[np.int64]) -> bool:
    """Returns whether rounding errors alone move the logits after some tokens beyond the tolerance.

    They do where an operator such as floor() reads a value beside one of its jumps: two right
    float32 computations may then take different sides. Weights with random errors show it.

    Args:
        model: the module.
        memory: memory of one sequence.
        tokens: (length,), the tokens that the sequence has read.
    """
    expected = logits_of(model, memory, tokens)
    for seed in range(_ROUNDED_MODELS):
        noise = torch.Generator().manual_seed(seed)
        rounded = copy.deepcopy(model)
        for weight in rounded.parameters():
            weight *= 1 + _ROUNDING * torch.randn(weight.shape, generator=noise)
        if not is_close(logits_of(rounded, memory, tokens), expected):
            return True
    return False


def row_of(inputs: Inputs, row: int) -> Inputs:
    """Returns one input of a batch as a batch of one."""
    return {name: value[row : row + 1] for name, value in inputs.items()}


@torch.no_grad()
def memory_of(model: Any, inputs: Inputs) -> Memory:
    """Returns the module's memory."""
    memory = model.encode(*(torch.from_numpy(np.array(v)) for v in inputs.values()))
    return tuple(memory) if isinstance(memory, (tuple, list)) else (memory,)


@torch.no_grad()
def all_logits(model: Any, memory: Memory, tokens: NDArray[np.int64]) -> Logits:
    """Returns the module's logits after every token, (batch, length, vocabulary)."""
    given = torch.from_numpy(np.array(tokens))
    if hasattr(model, "decode"):
        outputs = _first(model.decode(given, *memory))
    else:
        rows, state = [], model.initial_state(*memory)
        for token in given.unbind(1):
            row, state = model.step(token, state, *memory)
            rows.append(_first(row))
        outputs = torch.stack(rows, 1)
    logits: Logits = outputs.float().numpy()
    return logits


def _first(outputs: Any) -> Tensor:
    """Returns the logits of a decoder's outputs."""
    if isinstance(outputs, Mapping):
        outputs = outputs["logits"]
    logits: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    return logits


def logits_of(model: Any, memory: Memory, tokens: NDArray[np.int64]) -> Logits:
    """Returns the module's logits after one sequence of tokens, (vocabulary,)."""
    return np.array(all_logits(model, memory, tokens[None])[0, -1])


def flaws_of(model: Any, batches: Sequence[Inputs], vocabulary: int, length: int) -> set[Flaw]:
    """Returns the flaws that a module shows on random tokens.

    Args:
        model: the module.
        batches: inputs of several sizes, some of them with several rows.
        vocabulary: number of tokens to draw from.
        length: largest number of tokens.
    """
    flaws: set[Flaw] = set(BLIND)
    rng = np.random.default_rng(0)
    for inputs in batches:
        batch = len(next(iter(inputs.values())))
        tokens = rng.integers(0, vocabulary, (batch, length))
        try:
            flaws |= _flaws_of_batch(model, inputs, tokens)
            flaws -= _senses(model, inputs, tokens, vocabulary)
        except Exception:  # the module does not take this size, or moves away from its interface
            flaws.add(Flaw.FAILS)
    return flaws - BLIND if Flaw.FAILS in flaws else flaws


def _flaws_of_batch(model: Any, inputs: Inputs, tokens: NDArray[np.int64]) -> set[Flaw]:
    flaws = set()
    length = tokens.shape[1]
    memory = memory_of(model, inputs)
    logits = all_logits(model, memory, tokens)
    if not np.isfinite(logits).all():
        return {Flaw.NOT_FINITE}
    again = all_logits(model, memory_of(model, inputs), tokens)
    if not is_close(logits, again):
        return {Flaw.RANDOM}
    alone = [
        all_logits(model, memory_of(model, row_of(inputs, i)), tokens[i : i + 1])[0]
        for i in range(len(tokens))
    ]
    if not is_close(logits, np.stack(alone)):
        flaws.add(Flaw.MIXES_BATCH)
    for first in {
        1,
        length // 2,
        length - 1,
    }:  # a mask may show later tokens to the first ones only
        changed = tokens.copy()
        changed[:, first:] = (changed[:, first:] + 1) % max(2, tokens.max() + 1)
        if not is_close(logits[:, :first], all_logits(model, memory, changed)[:, :first]):
            flaws.add(Flaw.LOOKS_AHEAD)
    for count in range(1, length):
        shorter = all_logits(model, memory, tokens[:, :count])
        if not is_close(shorter[:, -1], logits[:, count - 1]) and Flaw.LOOKS_AHEAD not in flaws:
            flaws.add(Flaw.KNOWS_LENGTH)
    return flaws


def _senses(model: Any, inputs: Inputs, tokens: NDArray[np.int64], vocabulary: int) -> set[Flaw]:
    """Returns the kinds of blindness that a module does not have."""
    memory = memory_of(model, inputs)
    last = all_logits(model, memory, tokens)[:, -1]
    past = tokens.copy()
    past[:, :-1] = (past[:, :-1] + 1) % vocabulary
    other = {
        name: value if value.dtype.kind == "b" else _changed(value)
        for name, value in inputs.items()
    }
    seen = set()
    if not is_close(last, all_logits(model, memory, past)[:, -1], 10):
        seen.add(Flaw.IGNORES_PAST)
    if not is_close(last, all_logits(model, memory_of(model, other), tokens)[:, -1], 10):
        seen.add(Flaw.IGNORES_INPUTS)
    return seen


def _changed(value: NDArray[Any]) -> NDArray[Any]:
    """Returns other values of an input within the range of its values."""
    changed = -0.7 * value if value.dtype.kind == "f" else (value + 1) % (value.max() + 1)
    return np.asarray(changed, value.dtype)


def is_close(a: Logits, b: Logits, times: float = 1.0) -> bool:
    """Returns whether no logit differs by more than some times the tolerance."""
    return a.shape == b.shape and bool((np.abs(a - b) <= times * tolerance(b)).all())
