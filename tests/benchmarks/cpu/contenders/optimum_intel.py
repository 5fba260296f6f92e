"""Optimum Intel's OpenVINO models."""

from __future__ import annotations

import torch
from optimum.intel import OVModelForVision2Seq

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job
from tests.benchmarks.cpu.openvino_models import export_with_optimum, properties

PACKAGES = ("optimum-intel", "openvino", "transformers", "torch")


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        torch.set_num_threads(1)  # kinder than its default: two spinning pools fight for the cores
        config = {name: str(value) for name, value in properties(job.threads).items()}
        self._model = OVModelForVision2Seq.from_pretrained(job.made("openvino"), ov_config=config)
        self._input = torch.from_numpy(inputs[INPUT])

    def generate(self, count: int) -> Generated:
        tokens = self._model.generate(
            self._input, max_new_tokens=count, min_new_tokens=count, num_beams=1, do_sample=False
        )
        return Generated(tokens[0].tolist()[-count:])

    def encode(self) -> None:
        self._model.encoder(pixel_values=self._input)


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the folder of an export."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Exports with Optimum Intel, and compresses the weights with NNCF."""
    export_with_optimum(job)
