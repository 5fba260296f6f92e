"""Contender: OpenVINO on a plain export without a cache; the decoder runs on all tokens."""

from __future__ import annotations

import numpy as np
import openvino as ov

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job
from tests.benchmarks.cpu.openvino_models import compress, properties

PACKAGES = ("openvino",)
_GRAPHS = ("encoder", "decoder")


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        core, folder = ov.Core(), job.converted("openvino")
        self._encoder, self._decoder = (
            core.compile_model(folder / f"{name}.xml", "CPU", properties(job.threads))
            .create_infer_request() for name in _GRAPHS
        )  # fmt: skip
        self._input = inputs[INPUT]
        self._prompt = job.task.prompt

    def generate(self, count: int) -> Generated:
        memory, tokens = self._memory().copy(), np.array([self._prompt])
        for _ in range(count):
            inputs = {"tokens": tokens, "memory": memory}
            logits = self._decoder.infer(inputs, share_inputs=True, share_outputs=True)["logits"]
            tokens = np.concatenate([tokens, logits[:, -1].argmax(-1)[:, None]], 1)
        return Generated(tokens[0, -count:].tolist())

    def encode(self) -> None:
        self._memory()

    def _memory(self) -> np.ndarray:
        memory: np.ndarray = self._encoder.infer({"image": self._input})["memory"]
        return memory


def load(job: Job, inputs: Inputs) -> _Runner:
    """Compiles the encoder and the decoder."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Converts the ONNX files; for 8 bits compresses the weights with NNCF."""
    out = job.converted("openvino")
    if (out / f"{_GRAPHS[-1]}.xml").exists():
        return
    if job.form == "fp32":
        plain = Job(job.workload, "fp32", job.threads, job.work).converted("onnx")
        for name in _GRAPHS:
            model = ov.convert_model(plain / f"{name}.onnx")
            ov.save_model(model, out / f"{name}.xml", compress_to_fp16=False)
        return
    float_job = Job(job.workload, "fp32", job.threads, job.work)
    prepare(float_job)
    compress(float_job.converted("openvino"), out, job.form)
