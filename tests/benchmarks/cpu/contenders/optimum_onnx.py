"""Contender: the ONNX Runtime models of Optimum, in float or dynamically quantized to 8 bits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnxruntime as ort
import torch
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq, ORTModelForVision2Seq

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job

PACKAGES = ("optimum-onnx", "onnxruntime", "transformers", "torch")
_TASKS = {
    "whisper": "automatic-speech-recognition-with-past",
    "trocr": "image-to-text-with-past",
}
_OPSET = 17
_ERRORS_ONLY = 3


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        # faster than its default, where two busy-waiting thread pools share the cores
        torch.set_num_threads(1)
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.log_severity_level = _ERRORS_ONLY
        whisper = job.workload == "whisper"
        kind = ORTModelForSpeechSeq2Seq if whisper else ORTModelForVision2Seq
        self._model = kind.from_pretrained(
            job.converted("optimum"), session_options=options, provider="CPUExecutionProvider"
        )
        self._input = torch.from_numpy(inputs[INPUT])
        self._options = {"language": "en", "task": "transcribe"} if whisper else {}
        self._encoded = (
            {"input_features": self._input, "attention_mask": None}
            if whisper
            else {"pixel_values": self._input}
        )

    def generate(self, count: int) -> Generated:
        tokens = self._model.generate(
            self._input, max_new_tokens=count, min_new_tokens=count, num_beams=1, do_sample=False,
            **self._options,
        )  # fmt: skip
        return Generated(tokens[0].tolist()[-count:])

    def encode(self) -> None:
        self._model.encoder(**self._encoded)


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the exported folder."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Exports with Optimum; for 8 bits also quantizes every graph for AVX512-VNNI."""
    out = job.converted("optimum")
    if (out / "config.json").exists():
        return
    if job.form == "fp32":
        _export(job, out)
        return
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    float_job = Job(job.workload, "fp32", job.threads, job.work)
    prepare(float_job)
    folder = float_job.converted("optimum")
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    for graph in sorted(folder.glob("*.onnx")):
        quantizer = ORTQuantizer.from_pretrained(folder, file_name=graph.name)
        quantizer.quantize(save_dir=out, quantization_config=config, file_suffix="")
    for path in (*folder.glob("*.txt"), *folder.glob("*.json")):
        shutil.copy(path, out)


def _export(job: Job, out: Path) -> None:
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as name:  # main_export writes into the model's folder
        copy = shutil.copytree(job.model, Path(name, "model"))
        main_export(
            str(copy), str(out), task=_TASKS[job.workload], opset=_OPSET, do_validation=False,
            no_post_process=False,
        )  # fmt: skip
