"""Word error rates of the ways to decode long speech: sentences joined to one recording.

    python -m tests.benchmarks.long_speech BUNDLE --samples FOLDER --folder HUGGING_FACE_FOLDER

FOLDER has sound files and a labels.csv. It needs jiwer, and soundfile for files that are not WAV.
Texts are compared as words in small letters, without punctuation.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from hybrid_deploy import load_session
from hybrid_deploy.accuracy.error_rates import measure_accuracy
from hybrid_deploy.labels import load_labels
from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.preprocess.audio import load_audio
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.runtime.speech.transcribe import LongForm, transcribe

RATE = 16_000
FORMS = {
    "cut where quiet": LongForm("quiet"),
    "cut at timestamps": LongForm("timestamps"),
    "cut at timestamps, with context": LongForm("timestamps", condition_on_previous=True),
}
_COLUMNS = (
    Column("form", "form"),
    Column("wer", "WER %", digits=2),
    Column("windows", "windows"),
    Column("seconds", "s", digits=0),
)


def joined(samples: Path, first: int, count: int, gap_s: float) -> tuple[NDArray[np.float32], str]:
    """Returns sentences as one recording, with silence between them, and their words.

    Args:
        samples: folder with a labels.csv.
        first: index of the first sentence.
        count: number of sentences.
        gap_s: silence after each sentence, in seconds.
    """
    labels = load_labels(samples)[first : first + count]
    gap = np.zeros(int(gap_s * RATE), np.float32)
    parts = [part for label in labels for part in (load_audio(label.file, RATE), gap)]
    return np.concatenate(parts), " ".join(label.text for label in labels)


def words_of(text: str) -> str:
    """Returns the words of a text in small letters, without punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split())


def ours(session: Session, path: Path, long: LongForm) -> tuple[str, int]:
    """Returns the text of a recording, and the number of windows that were decoded."""
    parts = list(transcribe(session, path, long=long))
    texts = [part.result.text or "" for part in parts if part.result is not None]
    return " ".join(texts), len(parts)


def theirs(folder: Path, signal: NDArray[np.float32], *, context: bool) -> tuple[str, int]:
    """Returns the text of a recording by the long form of transformers with its fallback."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extractor: Any = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    features = extractor(
        signal, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest"
    ).input_features
    with torch.no_grad():
        made = model.generate(
            features,
            return_timestamps=True,
            return_segments=True,
            condition_on_prev_tokens=context,
            temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            compression_ratio_threshold=2.4,
            logprob_threshold=-1.0,
            no_speech_threshold=0.6,
        )
    segments = made["segments"][0]
    text = "".join(tokenizer.decode(s["tokens"], skip_special_tokens=True) for s in segments)
    return re.sub(r"<\|[\d.]+\|>", " ", text), len({id(s["result"]) for s in segments})


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--samples", required=True, type=click.Path(path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), help="Also decoded by transformers.")
@click.option("--first", default=0, show_default=True, help="Index of the first sentence.")
@click.option("--count", default=240, show_default=True, help="Number of sentences.")
@click.option("--gap", "gap_s", default=0.3, show_default=True, help="Seconds between sentences.")
def main(
    bundle: Path, samples: Path, folder: Path | None, first: int, count: int, gap_s: float
) -> None:
    """Print the word error rate of each way to decode the recording."""
    signal, expected = joined(samples, first, count, gap_s)
    session, rows = load_session(bundle, threads=1), []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "long.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((signal * 32767).astype("<i2").tobytes())
        heard = load_audio(path, RATE)
        forms: dict[str, Callable[[], tuple[str, int]]] = {
            name: partial(ours, session, path, long) for name, long in FORMS.items()
        }
        if folder is not None:
            forms["transformers"] = partial(theirs, folder, heard, context=False)
        for name, decode in forms.items():
            start = time.perf_counter()
            text, windows = decode()
            wer = measure_accuracy([words_of(expected)], [words_of(text)]).wer_percent
            seconds = time.perf_counter() - start
            rows.append({"form": name, "wer": wer, "windows": windows, "seconds": seconds})
            print(rows[-1], file=sys.stderr, flush=True)
            print(text, file=sys.stderr, flush=True)
    print(f"{len(signal) / RATE / 60:.1f} minutes, {len(expected.split())} words\n")
    print(render(rows, _COLUMNS, "md"))


if __name__ == "__main__":
    main()
