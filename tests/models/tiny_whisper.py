"""A tiny random Whisper with languages, tasks and timestamps, saved as a Hugging Face folder."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

RATE = 16_000
SECONDS = 2
"""Length of the model's window."""

CONTROLS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>",
    "<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
WORDS = 60
"""Number of tokens of text; the ids of CONTROLS follow them, and then the timestamps."""

END, START, EN, DE, FR, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = (
    WORDS + index for index in range(len(CONTROLS))
)
FIRST_TIMESTAMP = NO_TIMESTAMPS + 1
VOCABULARY = FIRST_TIMESTAMP + 50 * SECONDS + 1
CAPACITY = 32

GENERATION: dict[str, Any] = {
    "decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END,
    "max_length": CAPACITY, "no_timestamps_token_id": NO_TIMESTAMPS, "prev_sot_token_id": PREVIOUS,
    "suppress_tokens": [*range(START, NO_TIMESTAMPS)], "begin_suppress_tokens": [3, END],
    "return_timestamps": False, "is_multilingual": True,
    "lang_to_id": {"<|en|>": EN, "<|de|>": DE, "<|fr|>": FR},
    "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE},
    "language": "en", "task": "transcribe",
}  # fmt: skip


def save_tiny_whisper(folder: Path, seed: int = 0, **generation: Any) -> Any:
    """Saves a tiny Whisper with its processor and tokenizer; returns the model.

    Args:
        folder: folder to write.
        seed: seed of the weights.
        generation: changes of the generation config; None leaves a setting out.
    """
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_source_positions=50 * SECONDS, max_target_positions=CAPACITY,
        num_mel_bins=80, pad_token_id=END, bos_token_id=END, eos_token_id=END,
        decoder_start_token_id=START,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # tokens that depend on the sound and on each other
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    settings = {k: v for k, v in (GENERATION | generation).items() if v is not None}
    model.generation_config = transformers.GenerationConfig(**settings)
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(folder)
    _save_tokenizer(folder)
    return model


def features_of(signal: NDArray[np.float32], *, whole: bool = False) -> torch.Tensor:
    """Returns what Whisper's feature extractor makes of a signal, (1, mels, frames).

    Args:
        signal: samples, (samples,) float32.
        whole: whether a signal that is longer than the window is kept whole.
    """
    extractor: Any = transformers.WhisperFeatureExtractor(chunk_length=SECONDS)
    extra = {"truncation": False, "padding": "longest"} if whole else {}
    made: torch.Tensor = extractor(
        signal, sampling_rate=RATE, return_tensors="pt", **extra
    ).input_features
    return made


def generated_tokens(model: Any, features: torch.Tensor, **options: Any) -> list[int]:
    """Returns the tokens of one window from generate(), without the prompt and the end token."""
    with torch.no_grad():
        made = model.generate(features, force_unique_generate_call=True, **options)[0].tolist()
    start_tokens = 3 if options["return_timestamps"] else 4  # no token for no timestamps
    begin = made.index(START) + start_tokens
    return [token for token in made[begin:] if token != END]


def sound(seed: int, seconds: float) -> NDArray[np.float32]:
    """Returns tones that change every tenth of a second, (samples,) float32."""
    random = np.random.default_rng(seed)
    steps = random.uniform(100, 4000, int(np.ceil(seconds * 10)))
    loudness = random.uniform(0.01, 0.5, len(steps))
    length = int(seconds * RATE)
    hertz, level = (np.repeat(values, RATE // 10)[:length] for values in (steps, loudness))
    return (level * np.sin(2 * np.pi * np.cumsum(hertz) / RATE)).astype(np.float32)


def write_wav(path: Path, signal: NDArray[np.float32]) -> Path:
    """Writes a signal as 16-bit PCM and returns the path."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((signal * 32767).astype("<i2").tobytes())
    return path


def _save_tokenizer(folder: Path) -> None:
    """Saves a tokenizer of letters and pairs of letters, with Whisper's controls behind them."""
    letters = [f"Ġ{chr(97 + i)}" for i in range(26)] + [chr(97 + i) for i in range(26)]
    letters += list("0123456789")[: WORDS - len(letters)]
    vocabulary = {token: index for index, token in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="Ġa"))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    times = [f"<|{index / 50:.2f}|>" for index in range(50 * SECONDS + 1)]
    tokenizer.add_special_tokens(list(CONTROLS))
    tokenizer.add_tokens([tokenizers.AddedToken(time, special=False) for time in times])
    assert tokenizer.get_vocab_size() == VOCABULARY
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
