"""Contender: the OpenVINO models of Optimum Intel."""

from __future__ import annotations

import torch
from optimum.intel import OVModelForVision2Seq

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job
from tests.benchmarks.cpu.openvino_models import export_with_optimum, properties

PACKAGES = ("optimum-intel", "openvino", "transformers", "torch")


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        # faster than its default, where two busy-waiting thread pools share the cores
        torch.set_num_threads(1)
        config = {name: str(value) for name, value in properties(job.threads).items()}
        self._model = OVModelForVision2Seq.from_pretrained(
            job.converted("openvino"), ov_config=config
        )
        self._input = torch.from_numpy(inputs[INPUT])

    def generate(self, count: int) -> Generated:
        tokens = self._model.generate(
            self._input, max_new_tokens=count, min_new_tokens=count, num_beams=1, do_sample=False
        )
        return Generated(tokens[0].tolist()[-count:])

    def encode(self) -> None:
        self._model.encoder(pixel_values=self._input)


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the exported folder."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Exports with Optimum Intel; for 8 bits compresses the weights with NNCF."""
    export_with_optimum(job)
