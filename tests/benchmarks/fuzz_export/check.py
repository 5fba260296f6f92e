"""Exports one random model, and compares its bundle with the module through the public API."""

from __future__ import annotations

import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.runtime.session.session import Session, load_session
from tests.benchmarks.fuzz_export.models import Inputs, RandomModel, Sample, random_sample

TOLERANCE = 1e-3
"""Largest accepted difference of a logit, for logits up to 10; float32 sums differ by far less."""

_END = 2


class Verdict(str, Enum):
    """The result of one model."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "WRONG"
    TRACEBACK = "TRACEBACK"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Outcome:
    """What happened to the model of a seed.

    Attributes:
        seed: the seed.
        verdict: the result.
        reason: the first words of an error, or where a bundle differs.
        choices: parts of the model.
        compared: number of logit rows that were compared.
    """

    seed: int
    verdict: Verdict
    reason: str = ""
    choices: str = ""
    compared: int = 0


Change = Callable[[Path], None]
"""Changes a bundle after its export, to test that a wrong bundle is noticed."""


def outcome_of(
    seed: int, fixed: dict[str, str] | None = None, change: Change | None = None
) -> Outcome:
    """Exports the model of a seed, and compares its bundle.

    Args:
        seed: seed of the model.
        fixed: choices that are not drawn.
        change: changes the bundle before it is compared.
    """
    sample = random_sample(seed, fixed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder, "model.bundle")
        try:
            export_model(
                sample.model,
                dict(sample.example),
                path,
                max_length=sample.max_length,
                start_tokens=1,
                end_tokens=_END,
                dynamic=sample.dynamic,
            )
        except HybridDeployError as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Outcome(seed, Verdict.REFUSED, reason, sample.choices)
        except Exception as error:
            return Outcome(seed, Verdict.TRACEBACK, _where(error), sample.choices)
        if change is not None:
            change(path)
        return _compared(seed, sample, path)


def _where(error: Exception) -> str:
    """Returns the class and first line of an exception, and its innermost line of code."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text} at {Path(last.filename).name}:{last.lineno}"


def _compared(seed: int, sample: Sample, path: Path) -> Outcome:
    """Compares tokens and logits of a bundle with its module."""
    compared = 0
    try:
        session = load_session(path, threads=1, large_pages=False)
        for number, inputs in enumerate(sample.batches):
            shape = "x".join(map(str, next(iter(inputs.values())).shape))
            with _naming(f"inputs of {shape}"):
                compared += compare_batch(session, sample.model, inputs, sample.max_length, number)
    except DifferenceError as error:
        return Outcome(seed, Verdict.WRONG, str(error), sample.choices, compared)
    except HybridDeployError as error:
        reason = f"the bundle fails: {type(error).__name__}: {error}"
        return Outcome(seed, Verdict.WRONG, reason, sample.choices, compared)
    except Exception as error:
        return Outcome(
            seed, Verdict.TRACEBACK, f"after the export: {_where(error)}", sample.choices
        )
    return Outcome(seed, Verdict.RIGHT, "", sample.choices, compared)


class DifferenceError(Exception):
    """A bundle differs from its module."""


@contextmanager
def _naming(place: str) -> Iterator[None]:
    try:
        yield
    except HybridDeployError as error:
        raise DifferenceError(f"{place}: {type(error).__name__}: {error}") from error
    except DifferenceError as error:
        raise DifferenceError(f"{place}: {error}") from error


def compare_batch(
    session: Session, model: RandomModel, inputs: Inputs, max_length: int, seed: int
) -> int:
    """Compares one batch: greedy tokens, then logits of random tokens after unequal prompts.

    Args:
        session: the loaded bundle.
        model: the module.
        inputs: encoder inputs by name.
        max_length: largest number of tokens.
        seed: seed of the prompts.

    Returns:
        The number of logit rows compared; 0 if the module itself fails on these inputs.

    Raises:
        DifferenceError: the bundle differs.
        HybridDeployError: the bundle fails.
    """
    batch = len(next(iter(inputs.values())))
    try:
        memories = [
            memory_of(model, {n: v[i : i + 1] for n, v in inputs.items()}) for i in range(batch)
        ]
        logits_of(model, memories[0], np.ones(max_length, np.int64))
    except Exception:  # the module does not take this size
        return 0
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, model.vocabulary, seed % 3).tolist()
    compared = _compare_tokens(session, model, inputs, memories, prompt, max_length)
    return compared + _compare_logits(session, model, inputs, memories, max_length, rng)


def memory_of(model: RandomModel, inputs: Inputs) -> tuple[Tensor, ...]:
    """Returns the module's memory of one input."""
    with torch.no_grad():
        memory = model.encode(*(torch.from_numpy(np.ascontiguousarray(v)) for v in inputs.values()))
    return tuple(memory) if isinstance(memory, (tuple, list)) else (memory,)


def logits_of(
    model: RandomModel, memory: tuple[Tensor, ...], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the module's logits after one sequence of tokens, (vocabulary,)."""
    with torch.no_grad():
        logits: Any = model.decode(torch.from_numpy(tokens)[None], *memory)
    logits = logits["logits"] if isinstance(logits, dict) else logits
    last: NDArray[np.float32] = logits[0, -1].float().numpy()
    return last


def _compare_tokens(
    session: Session,
    model: RandomModel,
    inputs: Inputs,
    memories: list[tuple[Tensor, ...]],
    prompt: list[int],
    max_length: int,
) -> int:
    results, _ = session.run_arrays(inputs, prompt=prompt)
    compared = 0
    for row, (memory, result) in enumerate(zip(memories, results, strict=True)):
        sequence = [1, *prompt]
        for token in result.tokens:
            logits = logits_of(model, memory, np.array(sequence, np.int64))
            if not np.isfinite(logits).all():
                return compared
            lead = float(logits.max() - logits[token])
            if lead > _tolerance(logits):
                raise DifferenceError(
                    f"row {row}, after {len(sequence)} tokens: token {token} instead of "
                    f"{int(logits.argmax())}, which leads by {lead:.1e}"
                )
            sequence.append(token)
            compared += 1
        if sequence[-1] != _END and len(sequence) < max_length:
            raise DifferenceError(f"row {row} ends after {len(sequence)} of {max_length} tokens")
    return compared


def _compare_logits(
    session: Session,
    model: RandomModel,
    inputs: Inputs,
    memories: list[tuple[Tensor, ...]],
    max_length: int,
    rng: np.random.Generator,
) -> int:
    """Compares every logit of random tokens: a prefill of unequal prompts, then steps."""
    batch = len(memories)
    tokens = rng.integers(0, model.vocabulary, (batch, max_length))
    lengths = rng.integers(1, max_length // 2 + 1, batch)
    decoding = session.backend.start(inputs)
    logits = decoding.prefill(tokens[:, : lengths.max()], np.zeros(batch, np.int64), lengths - 1)
    compared = 0
    while True:
        for row, memory in enumerate(memories):
            expected = logits_of(model, memory, tokens[row, : lengths[row]])
            if not np.isfinite(expected).all():
                return compared
            difference = float(np.abs(expected - logits[row]).max())
            if not difference <= _tolerance(expected):
                raise DifferenceError(
                    f"row {row}, {lengths[row]} random tokens: a logit differs by {difference:.1e}"
                )
            compared += 1
        if lengths.max() == max_length:
            return compared
        logits = decoding.step(tokens[np.arange(batch), lengths], lengths)
        lengths = lengths + 1


def _tolerance(logits: NDArray[np.float32]) -> float:
    return TOLERANCE * max(1.0, float(np.abs(logits).max()) / 10)


def kind_of(reason: str) -> str:
    """Returns a reason without what differs between models: paths, numbers, names."""
    text = re.sub(r"\S+\.py:\d+: ?", "", reason)
    text = re.sub(r"\([^()]*\)", "()", text)
    text = re.sub(r"\d[\d.e+-]*", "N", text)
    return text[:110]
