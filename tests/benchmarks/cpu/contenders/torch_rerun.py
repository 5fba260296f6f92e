"""Contender: a plain PyTorch model without a cache; the decoder runs on all tokens."""

from __future__ import annotations

import warnings

import torch

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job
from tests.benchmarks.cpu.plain_model import LineReader, load_reader

PACKAGES = ("torch",)


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        torch.set_num_threads(job.threads)
        model = load_reader(job.workload, job.model)
        if job.form == "int8":
            model = _in_8_bits(model)
        self._encode, self._decode = model.encode, model.decode
        if job.form == "compile":
            self._encode = torch.compile(model.encode)
            self._decode = torch.compile(model.decode, dynamic=True)
        self._input = torch.from_numpy(inputs[INPUT])
        self._prompt = job.task.prompt

    @torch.inference_mode()
    def generate(self, count: int) -> Generated:
        memory, tokens = self._encode(self._input), torch.tensor([self._prompt])
        for _ in range(count):
            best = self._decode(tokens, memory)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, best], 1)
        return Generated(tokens[0, -count:].tolist())

    @torch.inference_mode()
    def encode(self) -> None:
        self._encode(self._input)


def prepare(job: Job) -> None:
    """Does nothing: the model is used as it is."""


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the weights; for 8 bits PyTorch quantizes every nn.Linear dynamically."""
    return _Runner(job, inputs)


def _in_8_bits(model: LineReader) -> LineReader:
    with warnings.catch_warnings():
        # PyTorch warns that quantize_dynamic moves to another package
        warnings.simplefilter("ignore")
        quantized: LineReader = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {torch.nn.Linear}, dtype=torch.qint8
        )
    return quantized
