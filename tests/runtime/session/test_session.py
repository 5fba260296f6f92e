"""Sessions of the tiny bundle: golden samples, batches, errors, profiles."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.errors import BackendError, InputError, UsageError
from hybrid_deploy.runtime.backends.onnxruntime import (
    variant_sessions as onnxruntime_graphs,
)
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.session.profile import profile_session
from hybrid_deploy.runtime.session.session import Session, load_session


@pytest.fixture
def session(tiny_path: Path) -> Session:
    return load_session(tiny_path)


def test_golden_sample(session: Session, tiny_path: Path) -> None:
    (sample,) = session.bundle.manifest.golden
    (result,), timings = session.run_files([tiny_path / sample.file])
    assert (result.tokens, result.text) == (sample.tokens, sample.text)
    assert result.scores is None, "scores cost time, so they are computed only when requested"
    assert len(timings.step_ms) == len(result.tokens) - 1
    assert timings.total_ms >= timings.encoder_ms > 0


def test_paths_may_be_strings(tiny_path: Path) -> None:
    bundle = open_bundle(str(tiny_path))
    session = load_session(str(tiny_path))
    (sample,) = bundle.manifest.golden
    file = str(tiny_path / sample.file)
    (result,), _ = session.run_files([file])
    assert result.tokens == sample.tokens
    (outcome,) = session.run_many([file])
    assert outcome.result is not None and outcome.result.tokens == sample.tokens
    with session.stream([file]) as stream:
        assert [event.token for event in stream] == list(sample.tokens)
    assert profile_session(session, [file], runs=1, warmup=0).stage("total").count == 1


def test_batch_equals_single(session: Session) -> None:
    images = np.random.default_rng(5).standard_normal((5, 1, 8, 24)).astype(np.float32)
    together, _ = session.run_arrays({"image": images})
    alone = [session.run_arrays({"image": image[None]})[0][0] for image in images]
    assert [row.tokens for row in together] == [row.tokens for row in alone]
    assert len({row.tokens for row in together}) > 1


def test_runs_of_a_session_do_not_share_state(session: Session) -> None:
    images = np.random.default_rng(6).standard_normal((2, 1, 8, 16)).astype(np.float32)
    first, _ = session.run_arrays({"image": images})
    session.run_arrays({"image": images[::-1].copy()})
    again, _ = session.run_arrays({"image": images})
    assert [row.tokens for row in first] == [row.tokens for row in again]


def test_a_bundle_without_start_tokens_needs_a_prompt(session: Session) -> None:
    manifest = session.bundle.manifest
    generation = msgspec.structs.replace(manifest.generation, start_tokens=())
    changed = msgspec.structs.replace(manifest, generation=generation)
    session = Session(Bundle(session.bundle.folder, changed), "fp32", session.backend)
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with pytest.raises(UsageError, match="has no start tokens; give a prompt to continue"):
        session.run_arrays(image)
    assert session.run_arrays(image, prompt=[1])[0][0].tokens


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("picture", (1, 1, 8, 8), np.float32, r"expected the inputs \['image'\]"),
        ("image", (1, 8, 8), np.float32, "must be float batchx1x8xwidth, got float32 1x8x8"),
        ("image", (1, 1, 9, 8), np.float32, "got float32 1x1x9x8"),
        ("image", (1, 1, 8, 8), np.float64, "got float64 1x1x8x8"),
        ("image", (0, 1, 8, 8), np.float32, "input image is empty: 0x1x8x8"),
        ("image", (1, 1, 8, 0), np.float32, "input image is empty: 1x1x8x0"),
    ],
)
def test_bad_arrays(
    session: Session, name: str, shape: tuple[int, ...], dtype: type, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        session.run_arrays({name: np.zeros(shape, dtype)})
    session.run_arrays({"image": np.zeros((1, 1, 8, 8), np.float32)})  # the session is still usable


def test_unknown_backend(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown backend 'cudnn'; choose one of: onnxruntime"):
        load_backend("cudnn", tiny_bundle, "fp32", BackendOptions())


@pytest.mark.parametrize(("supported", "advised"), [(23, 21), (20, 18)])
def test_error_of_a_library_that_is_too_old(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, supported: int, advised: int
) -> None:
    message_of_onnxruntime = (
        f"Current official support for domain ai.onnx is till opset {supported}."
    )

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError(message_of_onnxruntime)

    monkeypatch.setattr(onnxruntime_graphs, "make_session", refuse)
    message = rf"newer ONNX opset than the {supported} that onnxruntime 1\..*--opset {advised}"
    with pytest.raises(BackendError, match=message):
        load_backend("onnxruntime", tiny_bundle, "fp32", BackendOptions())


def test_profile_counts_every_stage(session: Session, page: Path) -> None:
    profile = profile_session(session, [page], runs=4, warmup=1)
    assert [stage.stage for stage in profile.stages] == [
        "preprocess",
        "encoder",
        "first token",
        "next token",
        "total",
    ]
    assert profile.stage("total").count == 4
    assert 0 < profile.stage("encoder").p50_ms <= profile.stage("encoder").p90_ms
    assert profile.stage("total").p50_ms >= profile.stage("encoder").p50_ms
    assert profile.tokens_per_s > 0


def test_profile_needs_runs(session: Session, page: Path) -> None:
    with pytest.raises(UsageError, match="runs must be a whole number from 1 on, got 0"):
        profile_session(session, [page], runs=0)
