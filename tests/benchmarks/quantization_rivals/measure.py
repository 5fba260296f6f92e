"""What is measured of a variant, with the same code for a rival's and for ours."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.token_agreement import compare_tokens
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.error_rates import measure_accuracy
from hybrid_deploy.errors import BuildError
from hybrid_deploy.labels import LabelledFile
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.engines.build import build_engine
from hybrid_deploy.runtime.engines.cache import EngineCache
from hybrid_deploy.runtime.session.session import GenerationResult, Session
from hybrid_deploy.target import parse_target

TARGET = "rtx:sm_86"
_STEPS = 9  # per round; all but the first are timed


def load(bundle: Bundle, variant: str) -> Session:
    """Loads a variant for one thread.

    Raises:
        BackendError: ONNX Runtime does not take it.
    """
    return Session(
        bundle, variant, load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(1))
    )


def read_lines(session: Session, labels: Sequence[LabelledFile]) -> list[GenerationResult]:
    """Reads labelled files one by one.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    return [session.run_files([label.file])[0][0] for label in labels]


def accuracy_of(
    labels: Sequence[LabelledFile],
    results: Sequence[GenerationResult],
    reference: Sequence[GenerationResult],
) -> dict[str, object]:
    """Returns the character error rate, and the share of the tokens that the reference has too."""
    texts = [result.text or "" for result in results]
    pairs = [(a.tokens, b.tokens) for a, b in zip(reference, results, strict=True)]
    return {
        "cer_percent": measure_accuracy([label.text for label in labels], texts).cer_percent,
        "same_tokens_percent": 100 * compare_tokens(pairs).token_share,
    }


def time_interleaved(
    sessions: Mapping[str, Session], samples: Sequence[Inputs], rounds: int
) -> dict[str, dict[str, float]]:
    """Returns the median times of encoder and step for each session, by name.

    Every round takes one sample through all the sessions, in an order of its own, so that what
    else the machine does, and what a session leaves in its caches, falls on all of them alike.
    """
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sessions}
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        names = list(sessions)
        shuffle(names)
        for name in names:
            encoder_ms, steps_ms = _time_sample(sessions[name], samples[number % len(samples)])
            times[name][0].append(encoder_ms)
            times[name][1].extend(steps_ms)
    return {
        name: {"encoder_ms": statistics.median(encoder), "step_ms": statistics.median(step)}
        for name, (encoder, step) in times.items()
    }


def _time_sample(session: Session, sample: Inputs) -> tuple[float, list[float]]:
    """Returns the times of the encoder and of some steps; each has run once before."""
    session.backend.start(sample)
    began = time.perf_counter()
    decoding = session.backend.start(sample)
    encoder_ms = (time.perf_counter() - began) * 1e3
    manifest = session.bundle.manifest
    token = np.full(decoding.batch, manifest.generation.pad_token, np.int64)
    steps_ms = []
    for position in range(min(_STEPS, manifest.capacity)):
        began = time.perf_counter()
        decoding.step(token, np.full(decoding.batch, position))
        steps_ms.append((time.perf_counter() - began) * 1e3)
    return encoder_ms, steps_ms[1:]


def build(bundle: Bundle, variant: str, role: GraphRole, cache: EngineCache) -> str:
    """Builds a graph with TensorRT-RTX: `builds`, or the first line of its refusal."""
    try:
        build_engine(bundle, variant, role, parse_target(TARGET), cache=cache)
    except BuildError as error:
        return str(error).splitlines()[0]
    return "builds"
