"""What the Python loop adds to a step: `python -m tests.benchmarks.cpu.overhead JOB`.

The step graph is run by the loop itself, and the time within ONNX Runtime is taken out: unlike two
runs beside each other, that does not depend on how fast the machine is at the time.
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
    """Medians over steps, in microseconds.

    Attributes:
        step_us: within the step graph.
        loop_us: everything else between two tokens, but for `refine_us`.
        refine_us: within the graph that makes rough logits true; 0 without one.
        warm_us: as `loop_us`, where no graph runs: caches of the CPU keep what the loop needs.
    """

    step_us: float
    loop_us: float
    refine_us: float
    warm_us: float

    def to_json(self) -> str:
        """Returns the numbers as a line of text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Overhead:
        """Reads what `to_json` gave."""
        return Overhead(**json.loads(text))


@dataclass(frozen=True)
class Call:
    """One run of a graph, in seconds.

    Attributes:
        graph: `step` or `refine`.
    """

    graph: GraphRole
    began: float
    ended: float


def overhead_of(calls: Sequence[Call], warm: Sequence[Call]) -> Overhead:
    """Takes the graphs' time out of what lies between the beginnings of two steps.

    Args:
        calls: of one generation or several, at least two steps of one behind each other.
        warm: as `calls`, from graphs that did nothing.
    """
    step_us, loop_us, refine_us = _medians(calls)
    return Overhead(step_us, loop_us, refine_us, _medians(warm)[1])


def _medians(calls: Sequence[Call]) -> tuple[float, float, float]:
    """Returns the microseconds in the step graph, in the loop and in the refine graph."""
    starts = [index for index, call in enumerate(calls) if call.graph is GraphRole.STEP]
    steps, loops, refines = [], [], []
    for here, after in itertools.pairwise(starts):
        within = [call.ended - call.began for call in calls[here:after]]
        steps.append(within[0])
        refines.append(sum(within[1:]))
        loops.append(calls[after].began - calls[here].began - sum(within))
    step, loop, refine = (statistics.median(found) * 1e6 for found in (steps, loops, refines))
    return step, loop, refine


class _Timed:
    """An ONNX Runtime session that writes down when it runs.

    Attributes:
        idle: whether it does nothing where it would only do the same again: what is bound to a step
            keeps the results of the first one.
    """

    def __init__(self, session: Any, graph: GraphRole, calls: list[Call]) -> None:
        self._session = session
        self._graph = graph
        self._calls = calls
        self._bound: Any = None
        self._asked: Any = None
        self._found: Any = None
        self.idle = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        began = time.perf_counter()
        if not self.idle or binding is not self._bound:
            self._session.run_with_iobinding(binding)
        self._bound = binding
        self._calls.append(Call(self._graph, began, time.perf_counter()))

    def run(self, names: Any, inputs: Any) -> Any:
        began = time.perf_counter()
        asked = inputs[CANDIDATES]
        if not self.idle or not np.array_equal(asked, self._asked):
            self._found = self._session.run(names, inputs)
        self._asked = asked
        self._calls.append(Call(self._graph, began, time.perf_counter()))
        return self._found


class _TimedBackend(OnnxRuntimeBackend):
    """The backend, its step and refine graphs timed."""

    def __init__(self, bundle: Bundle, variant: str, options: BackendOptions) -> None:
        super().__init__(bundle, variant, options)
        self.calls: list[Call] = []
        self._timed_step = _Timed(super().step_session, GraphRole.STEP, self.calls)
        refine = super().refine_session
        self._timed_refine = refine and _Timed(refine, GraphRole.REFINE, self.calls)

    def idle(self) -> None:
        """Lets the graphs do next to nothing from now on."""
        self.calls.clear()
        for timed in filter(None, (self._timed_step, self._timed_refine)):
            timed.idle = True

    @property
    def step_session(self) -> Any:
        return self._timed_step

    @property
    def refine_session(self) -> Any:
        return self._timed_refine


def measure(job: Job) -> Overhead:
    """Generates a few times as always, and as often with graphs that only run once."""
    bundle = open_bundle(bundle_path(job))
    backend = _TimedBackend(bundle, job.form, BackendOptions(job.threads))
    session = Session(bundle, job.form, backend)
    with np.load(job.inputs) as file:
        inputs = {encoder_input(session): np.ascontiguousarray(file[INPUT])}
    calls = _calls(backend, session, inputs, job.task.tokens)
    backend.idle()
    return overhead_of(calls, _calls(backend, session, inputs, job.task.tokens))


def _calls(backend: _TimedBackend, session: Session, inputs: Inputs, count: int) -> Sequence[Call]:
    """Returns the calls of a few generations, but for those of one that warms up."""
    generate(session, inputs, count)
    backend.calls.clear()
    for _ in range(_TIMES):
        generate(session, inputs, count)
    return tuple(backend.calls)


if __name__ == "__main__":
    job = Job.from_json(sys.argv[1])
    pin(job.threads)
    print(measure(job).to_json())
