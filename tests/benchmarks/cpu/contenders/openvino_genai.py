"""Contender: the Whisper pipeline of openvino-genai, with weights in float, 8 or 4 bits."""

from __future__ import annotations

import openvino_genai as og

from tests.benchmarks.cpu.contender import AUDIO, Generated, Inputs, Job
from tests.benchmarks.cpu.openvino_models import export_with_optimum, properties

PACKAGES = ("openvino-genai", "openvino")


class _Runner:
    def __init__(self, job: Job, inputs: Inputs) -> None:
        self._pipeline = og.WhisperPipeline(
            str(job.converted("openvino")), "CPU", **properties(job.threads)
        )
        self._config = self._pipeline.get_generation_config()
        self._config.language, self._config.task = "<|en|>", "transcribe"
        self._config.return_timestamps = False
        self._audio = inputs[AUDIO].tolist()
        self._tokens_by_count: dict[int, list[int]] = {}

    def generate(self, count: int) -> Generated:
        self._config.max_new_tokens = self._config.min_new_tokens = count
        listeners = []
        # only in the first call: a listener takes a thread and slows the pipeline
        if count not in self._tokens_by_count:
            listeners = [_Listener()]
        result = self._pipeline.generate(self._audio, self._config, *listeners)
        for listener in listeners:
            self._tokens_by_count[count] = listener.tokens[-count:]
        generated = result.perf_metrics.get_num_generated_tokens()
        if generated != count:
            raise RuntimeError(f"generated {generated} tokens, not {count}")
        mel = result.perf_metrics.get_features_extraction_duration()
        return Generated(self._tokens_by_count[count], outside_ms=mel.mean)


class _Listener(og.StreamerBase):  # type: ignore[misc]
    """Collects the tokens, because the pipeline itself returns text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []

    def write(self, token: int | list[int]) -> object:
        self.tokens.extend(token if isinstance(token, list) else [token])
        return og.StreamingStatus.RUNNING

    def end(self) -> None:
        """Does nothing: `write` has collected every token."""


def load(job: Job, inputs: Inputs) -> _Runner:
    """Loads the exported folder."""
    return _Runner(job, inputs)


def prepare(job: Job) -> None:
    """Exports with Optimum Intel; for 8 and 4 bits compresses the weights with NNCF."""
    export_with_optimum(job)
