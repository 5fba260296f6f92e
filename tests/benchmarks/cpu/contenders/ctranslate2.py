"""Contender: Whisper in CTranslate2."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job
from tests.benchmarks.cpu.workloads import WHISPER_END

PACKAGES = ("ctranslate2",)


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        self._model = ctranslate2.models.Whisper(
            str(_folder(job)), device="cpu", compute_type=job.form, inter_threads=1,
            intra_threads=job.threads,
        )  # fmt: skip
        self._features = inputs[INPUT]
        self._prompt = list(job.task.prompt)

    def generate(self, count: int) -> Generated:
        memory = self._model.encode(ctranslate2.StorageView.from_array(self._features))
        (result,) = self._model.generate(
            memory, [self._prompt], beam_size=1, max_length=2 * count,  # it generates half
            suppress_blank=False, suppress_tokens=[WHISPER_END],
        )  # fmt: skip
        return Generated(result.sequences_ids[0])

    def encode(self) -> None:
        features = ctranslate2.StorageView.from_array(self._features)
        np.array(self._model.encode(features, to_cpu=True))  # waits for the result


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the converted model and computes in the job's form."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Converts the model and stores it in float32; `load` applies the form."""
    out = _folder(job)
    if not (out / "model.bin").exists():
        converter = ctranslate2.converters.TransformersConverter(str(job.model))
        converter.convert(str(out), force=True)


def _folder(job: Job) -> Path:
    return job.folder / "ctranslate2"
