"""Contender: hybrid-deploy, a variant of a bundle through the public API."""

from __future__ import annotations

from hybrid_deploy import GenerateOptions, load_session
from tests.benchmarks.real.contender import Decoded, Task

PACKAGES = ("hybrid-deploy", "onnxruntime")


class _Runner:
    def __init__(self, task: Task) -> None:
        self._session = load_session(task.model, variant=task.form, threads=1)
        self._options = GenerateOptions(beams=task.beams)
        self._ends = set(self._session.bundle.manifest.generation.end_tokens)

    def decode(self, path: str) -> Decoded:
        (result,), times = self._session.run_files([path], options=self._options)
        tokens = [token for token in result.tokens if token not in self._ends]
        decode_ms = times.first_token_ms + sum(times.step_ms)
        return Decoded(tokens, result.text or "", times.encoder_ms, decode_ms)


def load(task: Task) -> _Runner:
    """Loads the variant that the task's form names."""
    return _Runner(task)
