"""Contender: hybrid-deploy, the variants of a bundle through the public API."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.backends.onnxruntime import (
    backend as onnxruntime_backend,
)
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session, Timings, load_session
from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job

PACKAGES = ("hybrid-deploy", "onnxruntime")
_BACKEND = onnxruntime_backend.OnnxRuntimeBackend.name  # counts its import, as for the rivals
BUNDLE = "ours.bundle"
_SAMPLES = 2


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        self._session = load_session(
            bundle_path(job), variant=job.form, backend=_BACKEND, threads=job.threads
        )
        self._inputs = {encoder_input(self._session): inputs[INPUT]}

    def generate(self, count: int) -> Generated:
        tokens, _ = generate(self._session, self._inputs, count)
        return Generated(tokens)

    def encode(self) -> None:
        self._session.backend.start(self._inputs)


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the variant that the job's form names."""
    return _Runner(job, inputs)


def generate(session: Session, inputs: Inputs, count: int) -> tuple[tuple[int, ...], Timings]:
    """Generates `count` tokens for one input and returns them with the timings."""
    options = GenerateOptions(max_new_tokens=count)
    (result,), timings = session.run_arrays(inputs, options=options)
    return result.tokens, timings


def encoder_input(session: Session) -> str:
    """Returns the name of the encoder's only input."""
    (tensor,) = session.bundle.graph(session.variant, GraphRole.ENCODER).inputs
    return tensor.name


def bundle_path(job: Job) -> Path:
    """Returns the folder of a workload's bundle, which has all our variants."""
    return job.folder / BUNDLE


def prepare(job: Job) -> None:
    """Exports the model unless the bundle exists, and adds the job's variant if it is missing."""
    path = bundle_path(job)
    if not path.exists():
        _export(job, path)
    bundle = open_bundle(path)
    if job.form not in bundle.manifest.variants:
        from hybrid_deploy.calibration.quantize import quantize_bundle

        (tensor,) = bundle.graph("fp32", GraphRole.ENCODER).inputs
        quantize_bundle(path, job.form, _samples(job, tensor.name))


def _export(job: Job, path: Path) -> None:
    import torch

    from hybrid_deploy.export.exporter import export_model

    model: torch.nn.Module
    if job.workload == "whisper":
        from transformers import WhisperForConditionalGeneration

        model = WhisperForConditionalGeneration.from_pretrained(job.model).eval()
    elif job.workload == "trocr":
        from transformers import VisionEncoderDecoderModel

        model = VisionEncoderDecoderModel.from_pretrained(job.model).eval()
    else:
        from tests.benchmarks.cpu.plain_model import load_reader

        model = load_reader(job.workload, job.model)
    with np.load(job.inputs) as file:
        example = torch.from_numpy(file[INPUT])
    prompt, length = job.task.prompt, job.task.length
    export_model(model, example, path, max_length=length, start_tokens=prompt)


def _samples(job: Job, name: str) -> Path:
    """Writes calibration inputs, the workload's own and a noisy copy, and returns their folder."""
    folder = job.folder / "samples"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    with np.load(job.inputs) as file:
        array = file[INPUT]
    for number in range(_SAMPLES):
        factor = rng.normal(1, 0.1 * number, array.shape)
        np.savez(folder / f"{number}.npz", **{name: (array * factor).astype(np.float32)})
    return folder
