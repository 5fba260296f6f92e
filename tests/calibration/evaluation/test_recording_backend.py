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


def test_every_call_is_kept_and_can_be_repeated(bundle: Bundle, images: list[Inputs]) -> None:
    backend = load_backend(DEFAULT_BACKEND, bundle, "fp32", BackendOptions(threads=1))
    recorder = RecordingBackend(backend, bytes_left=1 << 20)
    (result,), _ = Session(bundle, "fp32", recorder).run_arrays(images[0])
    # two start tokens go through prefill, every other token but the last through a step
    assert [turn.last is not None for turn in recorder.calls] == [True, *[False] * 5]
    assert tuple(turn.logits.argmax() for turn in recorder.calls) == result.tokens
    decoding = backend.start(images[0])
    for turn in recorder.calls:
        np.testing.assert_array_equal(turn.replay(decoding), turn.logits)


def test_recording_stops_where_there_is_no_room(bundle: Bundle, images: list[Inputs]) -> None:
    backend = load_backend(DEFAULT_BACKEND, bundle, "fp32", BackendOptions(threads=1))
    recorder = RecordingBackend(backend, bytes_left=0)
    (result,), _ = Session(bundle, "fp32", recorder).run_arrays(images[0])
    assert len(result.tokens) == 6
    assert len(recorder.calls) == 1
