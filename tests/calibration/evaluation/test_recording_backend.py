import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.recording_backend import RecordingBackend
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.runtime.backends.registry import (
    DEFAULT_BACKEND,
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.session.session import Session


def test_every_call_is_recorded_and_can_be_replayed(bundle: Bundle, images: list[Inputs]) -> None:
    backend = load_backend(DEFAULT_BACKEND, bundle, "fp32", BackendOptions(threads=1))
    recorder = RecordingBackend(backend, bytes_left=1 << 20)
    (result,), _ = Session(bundle, "fp32", recorder).run_arrays(images[0])
    # prefill takes the two start tokens, and a step takes every generated token but the last
    assert [call.last is not None for call in recorder.calls] == [True, *[False] * 5]
    assert tuple(call.logits.argmax() for call in recorder.calls) == result.tokens
    decoding = backend.start(images[0])
    for call in recorder.calls:
        np.testing.assert_array_equal(call.replay(decoding), call.logits)


def test_only_the_first_call_is_recorded_without_bytes_left(
    bundle: Bundle, images: list[Inputs]
) -> None:
    backend = load_backend(DEFAULT_BACKEND, bundle, "fp32", BackendOptions(threads=1))
    recorder = RecordingBackend(backend, bytes_left=0)
    (result,), _ = Session(bundle, "fp32", recorder).run_arrays(images[0])
    assert len(result.tokens) == 6
    assert len(recorder.calls) == 1
