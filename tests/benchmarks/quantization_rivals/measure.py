"""Measures a variant, with the same code for ours and for the rivals'."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from hybrid_deploy.accuracy.error_rates import measure_accuracy
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.token_agreement import compare_tokens
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.contract import GraphRole
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
_STEPS = 9  # steps of a round; the first is a warm-up


def load(bundle: Bundle, variant: str) -> Session:
    """Returns a session of a variant that runs with one thread.

    Raises:
        BackendError: ONNX Runtime cannot load the variant.
    """
    return Session(
        bundle, variant, load_backend(DEFAULT_BACKEND, bundle, variant, BackendOptions(1))
    )


def read_lines(session: Session, labels: Sequence[LabelledFile]) -> list[GenerationResult]:
    """Decodes labelled files one by one and returns their results.

    Raises:
        BackendError: a run of ONNX Runtime failed.
    """
    return [session.run_files([label.file])[0][0] for label in labels]


def accuracy_of(
    labels: Sequence[LabelledFile],
    results: Sequence[GenerationResult],
    reference: Sequence[GenerationResult],
) -> dict[str, object]:
    """Returns accuracy in percent: character error rate, and tokens equal to the reference's.

    Args:
        labels: files with the true texts.
        results: decoded by the variant, one per file.
        reference: decoded by the float variant, one per file.
    """
    texts = [result.text or "" for result in results]
    pairs = [(a.tokens, b.tokens) for a, b in zip(reference, results, strict=True)]
    return {
        "cer_percent": measure_accuracy([label.text for label in labels], texts).cer_percent,
        "same_tokens_percent": 100 * compare_tokens(pairs).token_share,
    }


def time_interleaved(
    sessions: Mapping[str, Session], samples: Sequence[Inputs], rounds: int
) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of encoder and step, by name of the session.

    Every round runs one sample through all sessions in a new random order. Other load on the
    machine, and what a session leaves in the CPU's caches, then affect all sessions alike.

    Args:
        sessions: sessions to time, by name.
        samples: encoder inputs; the rounds use them in turn.
        rounds: number of rounds.
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
    """Returns the milliseconds of the encoder and of each step, after a warm-up of both."""
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
    """Builds a graph with TensorRT-RTX; returns `builds` or the first line of the refusal."""
    try:
        build_engine(bundle, variant, role, parse_target(TARGET), cache=cache)
    except BuildError as error:
        return str(error).splitlines()[0]
    return "builds"
