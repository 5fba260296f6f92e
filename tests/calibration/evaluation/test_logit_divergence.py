from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.calibration.evaluation.decode_all import decode_all
from hybrid_deploy.calibration.evaluation.logit_divergence import Divergence, Teacher, kl_divergence
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import CalibrationError
from hybrid_deploy.export.reference.vocabulary import VOCABULARY
from hybrid_deploy.runtime.backends.protocol import (
    Backend,
    Decoding,
    FloatArray,
    IntArray,
)
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.session.session import load_session
from tests.closeness import float32_error, largest
from tests.fakes.perturbed_variant import with_perturbed

ONE_THREAD = BackendOptions(threads=1)


@dataclass
class ShiftedBackend:
    """A backend that adds a constant vector to the logits of another backend."""

    backend: Backend
    shift: FloatArray
    name: str = "shifted"
    version: str = "1"

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> "ShiftedDecoding":
        decoding = self.backend.start(inputs)
        return ShiftedDecoding(decoding, self.shift, decoding.batch)


@dataclass
class ShiftedDecoding:
    decoding: Decoding
    shift: FloatArray
    batch: int

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        return self.decoding.prefill(tokens, position, last) + self.shift

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        return self.decoding.step(token, position) + self.shift


def load(bundle: Bundle, variant: str = "fp32") -> Backend:
    return load_backend(DEFAULT_BACKEND, bundle, variant, ONE_THREAD)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    shares: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return shares


def test_kl_divergence_equals_its_formula() -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.standard_normal((2, 5, 7)).astype(np.float32)
    p, q = softmax(teacher.astype(np.float64)), softmax(student.astype(np.float64))
    # both sides in float64: only the order of the sums differs
    np.testing.assert_allclose(
        kl_divergence(teacher, student), (p * np.log(p / q)).sum(-1), rtol=1e-10
    )


def test_kl_divergence_of_infinite_and_nan_logits() -> None:
    excluding = np.array([[1, 2, -np.inf]], np.float32)
    finite = np.array([[1, 2, 3]], np.float32)
    assert kl_divergence(excluding, excluding) == 0
    assert np.isfinite(kl_divergence(excluding, finite))
    assert kl_divergence(finite, excluding) == np.inf
    assert kl_divergence(finite, np.full_like(finite, np.nan)) == np.inf


def test_a_variant_does_not_diverge_from_itself(bundle: Bundle, images: list[Inputs]) -> None:
    teacher = Teacher(bundle, "fp32", [*images, images[0]], threads=1)
    # four sequences of six tokens; the sample that occurs twice forms a batch of two
    divergence = teacher.divergence(load(bundle))
    assert divergence == Divergence(4, 24, 0.0, 0.0, 0.0, 1.0)
    session = load_session(bundle.folder, threads=1)
    assert teacher.divergence(session) == divergence, "a session is accepted as a student too"


def test_shifted_logits(bundle: Bundle, images: list[Inputs]) -> None:
    backend = load(bundle)
    (tokens,) = decode_all(bundle, "fp32", images[:1], threads=1).tokens
    shift = np.linspace(0, 1, len(VOCABULARY), dtype=np.float32)
    teacher = Teacher(bundle, "fp32", images[:1], threads=1)
    divergence = teacher.divergence(ShiftedBackend(backend, shift))
    decoding, kl, largest_logit = backend.start(images[0]), [], 0.0
    zero = np.zeros(1, np.int64)
    logits = decoding.prefill(np.array([[1, 3]]), zero, zero + 1)
    for index, token in enumerate(tokens):
        unshifted = logits.astype(np.float64)
        largest_logit = max(largest_logit, largest(unshifted))
        p, q = softmax(unshifted), softmax((logits + shift).astype(np.float64))
        kl.append(float((p * np.log(p / q)).sum()))
        logits = decoding.step(np.array([token]), np.array([2 + index]))
    # both sides compute in float64
    assert divergence.kl_mean_nats == pytest.approx(np.mean(kl), rel=1e-9)
    assert divergence.kl_max_nats == pytest.approx(max(kl), rel=1e-9)
    # the shifted logits are rounded to float32
    tolerance = float32_error(largest_logit + 1, roundings=2)
    assert divergence.largest_difference == pytest.approx(1.0, rel=0, abs=tolerance)


def test_a_perturbed_variant_diverges_more_with_more_noise(
    bundle: Bundle, images: list[Inputs]
) -> None:
    noisy = with_perturbed(with_perturbed(bundle, 1e-3, "less"), 1e-1, "more")
    teacher = Teacher(bundle, "fp32", images, threads=1)
    less, more = (teacher.divergence(load(noisy, name)) for name in ("less", "more"))
    assert 0 < less.kl_mean_nats < more.kl_mean_nats
    assert 0 < less.largest_difference < more.largest_difference
    assert less.kl_mean_nats <= less.kl_max_nats


def test_nan_logits_make_the_divergence_infinite(bundle: Bundle, images: list[Inputs]) -> None:
    teacher = Teacher(bundle, "fp32", images, threads=1)
    divergence = teacher.divergence(ShiftedBackend(load(bundle), np.array(np.nan, np.float32)))
    assert divergence == Divergence(3, 18, np.inf, np.inf, np.inf, 0.0)


def test_sequences_of_unequal_length(tiny_bundle: Bundle) -> None:
    """A sequence that has ended is not compared while others of its batch continue."""
    rng = np.random.default_rng(0)
    images = {"image": rng.standard_normal((12, 1, 8, 24)).astype(np.float32)}
    tokens = decode_all(tiny_bundle, "fp32", [images], threads=1).tokens
    end = next(t for t in tokens[0] if len({t in row for row in tokens}) > 1)
    generation = msgspec.structs.replace(tiny_bundle.manifest.generation, end_tokens=(end,))
    manifest = msgspec.structs.replace(tiny_bundle.manifest, generation=generation)
    ending = Bundle(tiny_bundle.folder, manifest)
    lengths = [row.index(end) + 1 if end in row else len(row) for row in tokens]
    assert len(set(lengths)) > 1
    divergence = Teacher(ending, "fp32", [images], threads=1).divergence(load(ending))
    assert divergence == Divergence(12, sum(lengths), 0.0, 0.0, 0.0, 1.0)


def test_decoder_without_prefill(tmp_path: Path) -> None:
    from tests.export.lowering.test_custom_step import Recurrent, export_recurrent

    export_recurrent(Recurrent, tmp_path / "own.bundle")
    bundle = open_bundle(tmp_path / "own.bundle")
    features = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    teacher = Teacher(bundle, "fp32", [{"features": features}], threads=1)
    assert teacher.divergence(load(bundle)).kl_max_nats == 0
    noisy = with_perturbed(bundle, 1e-2)
    assert teacher.divergence(load(noisy, "perturbed")).kl_max_nats > 0


def test_recording_stops_at_max_bytes(bundle: Bundle, images: list[Inputs]) -> None:
    teacher = Teacher(bundle, "fp32", images, threads=1, max_bytes=1)
    assert teacher.sequences == 1
    assert teacher.divergence(load(bundle)).steps == 1


def test_no_samples(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError) as caught:
        Teacher(bundle, "fp32", [])
    assert str(caught.value) == "there are no samples to compare logits on; give at least one"
