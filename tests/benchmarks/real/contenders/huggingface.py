"""Contender: `generate` of transformers."""

from __future__ import annotations

import time

import torch
from transformers import WhisperForConditionalGeneration

from tests.benchmarks.real.contender import Decoded, Task
from tests.benchmarks.real.contenders.sound import WhisperText

PACKAGES = ("transformers", "torch")


class _Runner:
    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        model = WhisperForConditionalGeneration.from_pretrained(task.model)
        self._model = model.to(getattr(torch, task.form)).eval()
        self._texts = WhisperText(task.hugging_face)
        self._beams = task.beams

    @torch.inference_mode()
    def decode(self, path: str) -> Decoded:
        features = torch.from_numpy(self._texts.features(path)).to(self._model.dtype)
        began = time.perf_counter()
        memory = self._model.get_encoder()(features)
        encoded = time.perf_counter()
        generated = self._model.generate(
            features, encoder_outputs=memory, num_beams=self._beams, do_sample=False
        )
        ended = time.perf_counter()
        tokens = self._texts.new_tokens(generated[0].tolist())
        times = (encoded - began) * 1e3, (ended - encoded) * 1e3
        return Decoded(tokens, self._texts.text(tokens), *times)


def load(task: Task) -> _Runner:
    """Loads the Hugging Face folder in the type that the task's form names."""
    return _Runner(task)
