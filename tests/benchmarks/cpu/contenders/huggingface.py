"""Contender: `generate` of transformers, eager or with torch.compile and a static cache."""

from __future__ import annotations

import torch
from transformers import VisionEncoderDecoderModel, WhisperForConditionalGeneration

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job

PACKAGES = ("transformers", "torch")
GREEDY = {"num_beams": 1, "do_sample": False}
WHISPER_TASK = {"language": "en", "task": "transcribe"}


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        torch.set_num_threads(job.threads)
        whisper = job.workload == "whisper"
        kind = WhisperForConditionalGeneration if whisper else VisionEncoderDecoderModel
        self._model = kind.from_pretrained(job.model).eval()
        self._encoder = self._model.model.encoder if whisper else self._model.encoder
        self._options = {**GREEDY, **(WHISPER_TASK if whisper else {})}
        if job.form == "compile":
            self._model.forward = torch.compile(self._model.forward)
            self._options["cache_implementation"] = "static"
        self._input = torch.from_numpy(inputs[INPUT])

    @torch.inference_mode()
    def generate(self, count: int) -> Generated:
        tokens = self._model.generate(
            self._input, max_new_tokens=count, min_new_tokens=count, **self._options
        )
        return Generated(tokens[0].tolist()[-count:])

    @torch.inference_mode()
    def encode(self) -> None:
        self._encoder(self._input)


def prepare(job: Job) -> None:
    """Does nothing: the model is used as it is."""


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the Hugging Face folder."""
    return _Runner(job, inputs)
