"""Shared by OpenVINO's contenders: compile properties, export, and weight compression."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.benchmarks.cpu.contender import Job

_TASKS = {
    "whisper": "automatic-speech-recognition-with-past",
    "trocr": "image-to-text-with-past",
}
_BLOCK = 128


def properties(threads: int) -> dict[str, object]:
    """Returns the properties that compile a model for low latency on `threads` threads."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }


def export_with_optimum(job: Job) -> None:
    """Exports a Hugging Face model to OpenVINO in the job's form, unless the export exists."""
    out = job.converted("openvino")
    if (out / "config.json").exists():
        return
    if job.form != "fp32":
        float_job = Job(job.workload, "fp32", job.threads, job.work)
        export_with_optimum(float_job)
        compress(float_job.converted("openvino"), out, job.form)
        return
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    with tempfile.TemporaryDirectory() as name:  # main_export writes into the model's folder
        copy = shutil.copytree(job.model, Path(name, "model"))
        main_export(
            str(copy), str(out), task=_TASKS[job.workload], ov_config=OVConfig(dtype="fp32"),
            stateful=True, convert_tokenizer=job.workload == "whisper",
        )  # fmt: skip


def compress(source: Path, out: Path, form: str) -> None:
    """Writes a folder's models with weights in 8 or 4 bits (`form`), as `optimum-cli` does."""
    import nncf
    import openvino as ov

    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {}
    if form == "int4":
        mode = nncf.CompressWeightsMode.INT4_SYM
        options = {"mode": mode, "group_size": _BLOCK, "ratio": 1.0}
    core = ov.Core()
    models = [path for path in sorted(source.glob("*.xml")) if "tokenizer" not in path.name]
    for path in models:
        compressed = nncf.compress_weights(core.read_model(path), **options)
        ov.save_model(compressed, out / path.name, compress_to_fp16=False)
    written = {path.with_suffix(end).name for path in models for end in (".xml", ".bin")}
    for path in source.iterdir():  # config.json is copied last: it marks a finished export
        if path.name not in written and path.name != "config.json":
            shutil.copy(path, out)
    if (source / "config.json").exists():
        shutil.copy(source / "config.json", out)
