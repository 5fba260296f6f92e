"""Measures the time that the Python loop adds to a step.

Run as `python -m tests.benchmarks.cpu.overhead JOB`.

One generation measures both the whole loop and the time inside ONNX Runtime, and the difference is
the overhead. Two separate runs would also differ by the drift of the machine's speed.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import CANDIDATES, GraphRole
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.session.session import Session
from tests.benchmarks.cpu.contender import INPUT, Inputs, Job
from tests.benchmarks.cpu.contenders.ours import bundle_path, encoder_input, generate
from tests.benchmarks.cpu.worker import pin

_TIMES = 5


@dataclass(frozen=True)
class Overhead:
    """Times of one step: medians over steps, in microseconds.

    Attributes:
        step_us: time inside the step graph.
        loop_us: time between two steps outside of all graphs, which is the Python loop's.
        refine_us: time inside the graph that computes exact logits from approximate ones; 0 if
            the variant has no such graph.
        warm_us: like `loop_us`, while the graphs compute nothing and the loop's data therefore
            stays in the CPU's caches.
    """

    step_us: float
    loop_us: float
    refine_us: float
    warm_us: float

    def to_json(self) -> str:
        """Returns the times as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Overhead:
        """Returns the times of a line from `to_json`."""
        return Overhead(**json.loads(text))


@dataclass(frozen=True)
class Call:
    """One run of a graph.

    Attributes:
        graph: role of the graph, step or refine.
        began: start of the run in seconds of `time.perf_counter`.
        ended: end of the run in seconds of the same clock.
    """

    graph: GraphRole
    began: float
    ended: float


def overhead_of(calls: Sequence[Call], warm: Sequence[Call]) -> Overhead:
    """Returns the times of a step: the time between two steps' starts, split by graph and loop.

    Args:
        calls: runs of graphs in order of time, with at least two steps.
        warm: runs of graphs that computed nothing, likewise.
    """
    step_us, loop_us, refine_us = _medians(calls)
    return Overhead(step_us, loop_us, refine_us, _medians(warm)[1])


def _medians(calls: Sequence[Call]) -> tuple[float, float, float]:
    """Returns the microseconds in the step graph, in the loop and in the refine graph."""
    starts = [index for index, call in enumerate(calls) if call.graph is GraphRole.STEP]
    steps, loops, refines = [], [], []
    for current, following in itertools.pairwise(starts):
        inside = [call.ended - call.began for call in calls[current:following]]
        steps.append(inside[0])
        refines.append(sum(inside[1:]))
        loops.append(calls[following].began - calls[current].began - sum(inside))
    step, loop, refine = (statistics.median(times) * 1e6 for times in (steps, loops, refines))
    return step, loop, refine


class _TimedSession:
    """An ONNX Runtime session that records the time of each run.

    Attributes:
        skips_repeats: whether a run with the binding or the candidates of the run before computes
            nothing: its results are those of that run.
    """

    def __init__(self, session: Any, graph: GraphRole, calls: list[Call]) -> None:
        self._session = session
        self._graph = graph
        self._recorded_calls = calls
        self._last_binding: Any = None
        self._last_candidates: Any = None
        self._last_results: Any = None
        self.skips_repeats = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        began = time.perf_counter()
        if not self.skips_repeats or binding is not self._last_binding:
            self._session.run_with_iobinding(binding)
        self._last_binding = binding
        self._recorded_calls.append(Call(self._graph, began, time.perf_counter()))

    def run(self, names: Any, inputs: Any) -> Any:
        began = time.perf_counter()
        candidates = inputs[CANDIDATES]
        if not self.skips_repeats or not np.array_equal(candidates, self._last_candidates):
            self._last_results = self._session.run(names, inputs)
        self._last_candidates = candidates
        self._recorded_calls.append(Call(self._graph, began, time.perf_counter()))
        return self._last_results


class _TimedBackend(OnnxRuntimeBackend):
    """The ONNX Runtime backend with timed step and refine sessions."""

    def __init__(self, bundle: Bundle, variant: str, options: BackendOptions) -> None:
        super().__init__(bundle, variant, options)
        self.calls: list[Call] = []
        self._timed_step = _TimedSession(super().step_session, GraphRole.STEP, self.calls)
        refine = super().refine_session
        self._timed_refine = refine and _TimedSession(refine, GraphRole.REFINE, self.calls)

    def skip_repeats(self) -> None:
        """Makes later runs of the graphs compute nothing where they repeat the run before."""
        self.calls.clear()
        for timed in filter(None, (self._timed_step, self._timed_refine)):
            timed.skips_repeats = True

    @property
    def step_session(self) -> Any:
        return self._timed_step

    @property
    def refine_session(self) -> Any:
        return self._timed_refine


def measure(job: Job) -> Overhead:
    """Returns the times of a step, measured with graphs that compute and with idle graphs."""
    bundle = open_bundle(bundle_path(job))
    backend = _TimedBackend(bundle, job.form, BackendOptions(job.threads))
    session = Session(bundle, job.form, backend)
    with np.load(job.inputs) as file:
        inputs = {encoder_input(session): np.ascontiguousarray(file[INPUT])}
    calls = _recorded_calls(backend, session, inputs, job.task.tokens)
    backend.skip_repeats()
    return overhead_of(calls, _recorded_calls(backend, session, inputs, job.task.tokens))


def _recorded_calls(
    backend: _TimedBackend, session: Session, inputs: Inputs, count: int
) -> Sequence[Call]:
    """Returns the graph runs of several generations, after one generation as a warm-up."""
    generate(session, inputs, count)
    backend.calls.clear()
    for _ in range(_TIMES):
        generate(session, inputs, count)
    return tuple(backend.calls)


if __name__ == "__main__":
    job = Job.from_json(sys.argv[1])
    pin(job.threads)
    print(measure(job).to_json())
