"""Writes a workload's model, input arrays and reference tokens.

Run as `python -m tests.benchmarks.cpu.models NAME WORK`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks.cpu.contender import Job
from tests.benchmarks.cpu.workloads import TROCR, WHISPER


def build(name: str, work: Path) -> None:
    """Writes a workload's model, its input arrays, and the tokens of eager PyTorch.

    A plain model is also exported to ONNX, because more than one contender starts from that export.

    Args:
        name: name of the workload.
        work: folder of all models.
    """
    job = Job(name, "eager", 1, str(work))
    job.folder.mkdir(parents=True, exist_ok=True)
    library = "torch_rerun"
    if name in (WHISPER.name, TROCR.name):
        from tests.benchmarks.cpu.huggingface_models import write_trocr, write_whisper

        library = "huggingface"
        (write_whisper if name == WHISPER.name else write_trocr)(job)
    else:
        from tests.benchmarks.cpu.contenders import onnx_rerun
        from tests.benchmarks.cpu.plain_model import write_reader

        write_reader(job)
        onnx_rerun.prepare(Job(name, "fp32", 1, str(work)))
    contender = importlib.import_module(f"tests.benchmarks.cpu.contenders.{library}")
    with np.load(job.inputs) as file:
        tokens = contender.load(job, dict(file)).generate(job.task.tokens).tokens
    job.reference.write_text(json.dumps(list(tokens)), encoding="utf-8")


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
