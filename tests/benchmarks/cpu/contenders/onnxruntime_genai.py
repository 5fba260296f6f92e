"""Contender: onnxruntime-genai, with a Whisper model from its own model builder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime_genai as og

from tests.benchmarks.cpu.contender import INPUT, Generated, Inputs, Job

PACKAGES = ("onnxruntime-genai", "onnxruntime")


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        config = og.Config(str(job.converted("genai")))
        threads = {"session_options": {"intra_op_num_threads": job.threads}}
        config.overlay(json.dumps({"model": {"encoder": threads, "decoder": threads}}))
        self._model = og.Model(config)
        self._features = inputs[INPUT]
        self._prompt = np.array([job.task.prompt], np.int32)

    def generate(self, count: int) -> Generated:
        length = self._prompt.shape[1] + count
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            do_sample=False, num_beams=1, batch_size=1, min_length=length, max_length=length
        )
        generator = og.Generator(self._model, params)
        tensors = og.NamedTensors()  # the features that its processor would compute
        tensors["input_ids"], tensors["audio_features"] = self._prompt, self._features
        generator.set_inputs(tensors)
        while not generator.is_done():
            generator.generate_next_token()
        return Generated(generator.get_sequence(0)[-count:].tolist())


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the folder that the model builder wrote."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Runs the model builder for the CPU."""
    out = job.converted("genai")
    if (out / "genai_config.json").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
    folders = ["-m", str(job.model), "-o", str(out), "-c", f"{out}-cache"]
    subprocess.run([*builder, *folders, "-p", job.form], check=True)
