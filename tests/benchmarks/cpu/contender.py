"""What a contender is given and what it must be able to do.

Each is a module of `contenders`, imported in an environment of its own, so that this file and
everything that it imports need only the standard library. A module has

    PACKAGES                whose versions are reported
    prepare(job)            exports or converts, in a process before the one that is measured
    load(job, inputs)       gives a Runner; what the module imports at its top is timed apart
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tests.benchmarks.cpu.workloads import WORKLOADS, Workload

INPUT, AUDIO = "input", "audio"
"""Arrays of a workload: what the encoder takes, batch 1; and the sound that it was made of."""

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One contender's work.

    Attributes:
        workload: name of the workload.
        form: what the contender makes of the model's numbers, in its own words.
        threads: CPU threads.
        work: folder of the models and of what is made of them.
    """

    workload: str
    form: str
    threads: int
    work: str

    @property
    def task(self) -> Workload:
        """The workload itself."""
        return WORKLOADS[self.workload]

    @property
    def folder(self) -> Path:
        """Where the workload's files are."""
        return Path(self.work) / self.workload

    @property
    def model(self) -> Path:
        """The trained model: a Hugging Face folder, or weights of a plain one."""
        return self.folder / "model"

    @property
    def inputs(self) -> Path:
        """The arrays that go in, as .npz."""
        return self.folder / "inputs.npz"

    @property
    def reference(self) -> Path:
        """The tokens of eager PyTorch, as JSON."""
        return self.folder / "reference.json"

    def made(self, name: str) -> Path:
        """Where a contender keeps what it made of the model in this form."""
        return self.folder / f"{name}-{self.form}"

    def to_json(self) -> str:
        """Returns the job as a line of text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Reads what `to_json` gave."""
        return Job(**json.loads(text))


@dataclass(frozen=True)
class Generated:
    """What one generation gave.

    Attributes:
        tokens: the new tokens.
        outside_ms: time within the call for what others get ready made (preprocessing).
    """

    tokens: Sequence[int]
    outside_ms: float = 0.0


class Runner(Protocol):
    """A model, loaded."""

    def generate(self, count: int) -> Generated:
        """Encodes the input and generates greedily, as a user would ask for it."""
        ...


@runtime_checkable
class EncodesAlone(Protocol):
    """A runner whose encoder can be called by itself."""

    def encode(self) -> None:
        """Encodes the input."""
        ...


class Contender(Protocol):
    """A module of `contenders`."""

    PACKAGES: Sequence[str]

    def prepare(self, job: Job) -> None:
        """Makes what `load` needs; does nothing where it is there."""
        ...

    def load(self, job: Job, inputs: Inputs) -> Runner:
        """Loads what `prepare` made."""
        ...
