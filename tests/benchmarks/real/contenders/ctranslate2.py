"""Contender: CTranslate2, on the file that the weights come from."""

from __future__ import annotations

import time

import ctranslate2
import numpy as np

from tests.benchmarks.real.contender import Decoded, Task
from tests.benchmarks.real.contenders.sound import WhisperText

PACKAGES = ("ctranslate2",)


class _Runner:
    def __init__(self, task: Task) -> None:
        self._model = ctranslate2.models.Whisper(
            task.model, device="cpu", compute_type=task.form, inter_threads=1, intra_threads=1
        )
        self._texts = WhisperText(task.hugging_face)
        self._beams = task.beams

    def decode(self, path: str) -> Decoded:
        features = ctranslate2.StorageView.from_array(self._texts.features(path))
        began = time.perf_counter()
        memory = self._model.encode(features, to_cpu=True)
        np.array(memory)  # waits for the result
        encoded = time.perf_counter()
        (result,) = self._model.generate(
            memory, [list(self._texts.prompt)], beam_size=self._beams,
            max_length=self._texts.max_length,
        )  # fmt: skip
        ended = time.perf_counter()
        tokens = self._texts.new_tokens(list(result.sequences_ids[0]))
        times = (encoded - began) * 1e3, (ended - encoded) * 1e3
        return Decoded(tokens, self._texts.text(tokens), *times)


def load(task: Task) -> _Runner:
    """Loads the model and computes in the task's form; it suppresses Whisper's tokens itself."""
    return _Runner(task)
