"""The contract between the benchmark and a contender.

Each contender is a module of `contenders`, imported in an environment of its own; this file and its
imports therefore need only the standard library. A contender's module has

    PACKAGES                names of the packages whose versions are reported
    prepare(job)            exports or converts the model, in a process of its own
    load(job, inputs)       returns a Runner; the module's imports are timed apart
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tests.benchmarks.cpu.workloads import WORKLOADS, Workload

INPUT, AUDIO = "input", "audio"
"""Names of a workload's arrays: the encoder's input (batch 1), and for Whisper the sound of it."""

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One contender's work.

    Attributes:
        workload: name of the workload.
        form: precision or mode of the contender, in its own terms, such as `int8` or `compile`.
        threads: number of CPU threads.
        work: folder of the models and the converted models.
    """

    workload: str
    form: str
    threads: int
    work: str

    @property
    def task(self) -> Workload:
        """The workload of this name."""
        return WORKLOADS[self.workload]

    @property
    def folder(self) -> Path:
        """Folder of the workload's files."""
        return Path(self.work) / self.workload

    @property
    def model(self) -> Path:
        """Path of the original model: a Hugging Face folder, or the weights of a plain model."""
        return self.folder / "model"

    @property
    def inputs(self) -> Path:
        """Path of the .npz file with the input arrays."""
        return self.folder / "inputs.npz"

    @property
    def reference(self) -> Path:
        """Path of the JSON file with the tokens of eager PyTorch."""
        return self.folder / "reference.json"

    def converted(self, name: str) -> Path:
        """Returns the path of the model that a contender converted to this form."""
        return self.folder / f"{name}-{self.form}"

    def to_json(self) -> str:
        """Returns the job as one line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Returns the job of a line from `to_json`."""
        return Job(**json.loads(text))


@dataclass(frozen=True)
class Generated:
    """Result of one generation.

    Attributes:
        tokens: the new tokens.
        outside_ms: milliseconds of the call that do not count: preprocessing, which other
            contenders do not have to do.
    """

    tokens: Sequence[int]
    outside_ms: float = 0.0


class Runner(Protocol):
    """A loaded model."""

    def generate(self, count: int) -> Generated:
        """Encodes the input and generates `count` tokens greedily, with the usual public call."""
        ...


@runtime_checkable
class EncodesAlone(Protocol):
    """A runner that can also run its encoder alone."""

    def encode(self) -> None:
        """Runs the encoder on the input."""
        ...


class Contender(Protocol):
    """Functions and constants of a module in `contenders`."""

    PACKAGES: Sequence[str]

    def prepare(self, job: Job) -> None:
        """Writes the files that `load` needs, unless they exist."""
        ...

    def load(self, job: Job, inputs: Inputs) -> Runner:
        """Loads the files of `prepare` and returns the runner."""
        ...
