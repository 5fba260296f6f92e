"""A timeout also ends a graph that runs: it holds for endless loops in every graph."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.deadline import Until, deadline, stopping_at
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import load_session
from tests.fakes.endless_graph import make_endless

TIMEOUT_S = 0.2
LONGEST_S = 20.0  # of a busy machine


@pytest.mark.parametrize(
    ("roles", "prompt", "beams"),
    [
        (("encoder",), (), 1),
        (("encoder",), (), 2),
        (("step", "beam_step"), (), 1),
        (("beam_step",), (), 2),
        (("prefill",), (3, 4, 5, 6, 7), 1),
    ],
)
def test_a_timeout_ends_an_endless_graph(
    own_path: Path, roles: tuple[str, ...], prompt: tuple[int, ...], beams: int
) -> None:
    make_endless(own_path, *roles)
    session = load_session(own_path, threads=1)
    image = {"image": np.zeros((2, 1, 8, 16), np.float32)}
    started_at = time.monotonic()
    options = GenerateOptions(beams=beams, timeout_s=TIMEOUT_S)
    results, _ = session.run_arrays(image, prompt=prompt, options=options)
    assert [(result.finish, result.tokens) for result in results] == [("timeout", ())] * 2
    assert TIMEOUT_S <= time.monotonic() - started_at < LONGEST_S


def test_a_stream_ends_too(own_path: Path) -> None:
    make_endless(own_path, "step", "beam_step")
    image = {"image": np.zeros((1, 1, 8, 16), np.float32)}
    options = GenerateOptions(timeout_s=TIMEOUT_S)
    with load_session(own_path, threads=1).stream(image, options=options) as stream:
        assert list(stream) == []
    assert stream.results[0].finish == "timeout"


def test_another_failure_stays_as_it_is() -> None:
    with Until(time.perf_counter() + LONGEST_S):
        end = deadline()
        assert end is not None
        with pytest.raises(BackendError, match=r"^broken$"), stopping_at(end, lambda: None):
            raise BackendError("broken")
    assert deadline() is None


def test_a_run_that_has_ended_is_not_stopped() -> None:
    stopped, late = threading.Event(), threading.Event()
    with stopping_at(time.perf_counter() + 0.1, stopped.set):
        pass
    with stopping_at(time.perf_counter(), late.set):
        assert late.wait(LONGEST_S)
    time.sleep(0.2)
    assert not stopped.is_set()
