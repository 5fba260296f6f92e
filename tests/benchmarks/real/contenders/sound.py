"""What the rivals share: sound to features, tokens to text, and how Whisper's texts begin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor


class WhisperText:
    """The feature extractor and the tokenizer of a Hugging Face folder of Whisper.

    Attributes:
        prompt: ids of the tokens that a text without timestamps begins with.
        max_length: largest number of tokens, with the prompt.
    """

    def __init__(self, folder: str) -> None:
        self._extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self._tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        settings = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8"))
        self._end, self.max_length = settings["eos_token_id"], settings["max_length"]
        task: tuple[int, ...] = ()
        if settings["is_multilingual"]:
            language = f"<|{settings['language']}|>"
            task = settings["lang_to_id"][language], settings["task_to_id"][settings["task"]]
        start, last = settings["decoder_start_token_id"], settings["no_timestamps_token_id"]
        self.prompt = (start, *task, last)

    def features(self, path: str) -> NDArray[np.float32]:
        """Returns the features (1, bins, frames) of a sound file."""
        samples, rate = soundfile.read(path, dtype="float32")
        extracted = self._extractor(samples, sampling_rate=rate, return_tensors="np")
        features: NDArray[np.float32] = extracted.input_features.astype(np.float32)
        return features

    def new_tokens(self, tokens: list[int]) -> list[int]:
        """Returns the tokens without the prompt before and the end tokens behind them."""
        if tuple(tokens[: len(self.prompt)]) == self.prompt:
            tokens = tokens[len(self.prompt) :]
        return [token for token in tokens if token != self._end]

    def text(self, tokens: list[int]) -> str:
        """Returns the text of new tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
