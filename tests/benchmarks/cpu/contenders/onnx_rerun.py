"""Contender: ONNX Runtime on a plain export without a cache; the decoder runs on all tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job

PACKAGES = ("onnxruntime",)
_ERRORS_ONLY = 3


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.log_severity_level = _ERRORS_ONLY
        self._encoder, self._decoder = (
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in graphs(job)
        )
        self._input = inputs[INPUT]
        self._prompt = job.task.prompt

    def generate(self, count: int) -> Generated:
        memory, tokens = self._memory(), np.array([self._prompt])
        for _ in range(count):
            logits = self._decoder.run(None, {"tokens": tokens, "memory": memory})[0]
            tokens = np.concatenate([tokens, logits[:, -1].argmax(-1)[:, None]], 1)
        return Generated(tokens[0, -count:].tolist())

    def encode(self) -> None:
        self._memory()

    def _memory(self) -> np.ndarray:
        memory: np.ndarray = self._encoder.run(None, {"image": self._input})[0]
        return memory


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the encoder and the decoder."""
    return _Runner(job, inputs)


def graphs(job: Job) -> tuple[Path, Path]:
    """Returns the paths of the encoder and decoder graphs."""
    folder = job.converted("onnx")
    return folder / "encoder.onnx", folder / "decoder.onnx"


def prepare(job: Job) -> None:
    """Exports the model; for 8 bits also quantizes the decoder's products dynamically."""
    encoder, decoder = graphs(job)
    if decoder.exists():
        return
    decoder.parent.mkdir(parents=True, exist_ok=True)
    if job.form == "fp32":
        export(job, encoder, decoder)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float_job = Job(job.workload, "fp32", job.threads, job.work)
    prepare(float_job)
    float_encoder, float_decoder = graphs(float_job)
    shutil.copy(float_encoder, encoder)
    operators = ["MatMul", "Gemm"]
    quantize_dynamic(
        float_decoder, decoder, weight_type=QuantType.QInt8, op_types_to_quantize=operators
    )


def export(job: Job, encoder: Path, decoder: Path) -> None:
    """Writes both graphs, each in one file; the number of tokens is a dynamic axis."""
    import torch
    from torch import Tensor, nn

    from tests.benchmarks.cpu.plain_model import LineReader, load_reader

    class Encoder(nn.Module):
        def __init__(self, model: LineReader) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            return self.model.encode(image)

    class Decoder(nn.Module):
        def __init__(self, model: LineReader) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
            # without causal=True, PyTorch's exporter fails in the test of the mask
            return self.model.decode(tokens, memory, causal=True)

    model = load_reader(job.workload, job.model)
    with np.load(job.inputs) as file:
        image = torch.from_numpy(file[INPUT])
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    length = torch.export.Dim("length", min=1, max=model.positions.num_embeddings)
    with torch.no_grad():
        memory = model.encode(image)
        torch.onnx.export(
            Encoder(model).eval(), (image,), encoder, dynamo=True, external_data=False,
            input_names=["image"], output_names=["memory"], verbose=False,
        )  # fmt: skip
        torch.onnx.export(
            Decoder(model).eval(), (tokens, memory), decoder, dynamo=True, external_data=False,
            input_names=["tokens", "memory"], output_names=["logits"], verbose=False,
            dynamic_shapes=({1: length}, None),
        )  # fmt: skip
