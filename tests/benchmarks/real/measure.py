"""Makes one row: a contender's process decodes every held-out recording."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.cpu.child import ChildError, run_to_end
from tests.benchmarks.cpu.contender import Job
from tests.benchmarks.real import variants
from tests.benchmarks.real.contender import Task
from tests.benchmarks.real.entries import CTRANSLATE2, Entry
from tests.benchmarks.real.row import DecodedFile, Row
from tests.benchmarks.real.speech import Speech
from tests.benchmarks.real.weights import Folders

_LONGEST_S = 6 * 3600.0


@dataclass(frozen=True)
class Place:
    """Where the files of one model are.

    Attributes:
        folder: folder of tasks and logs.
        models: the weights.
        bundle: our bundle.
        rivals: interpreter of the rivals' environment; None if there is none.
    """

    folder: Path
    models: Folders
    bundle: Path
    rivals: Path | None


def measure(entry: Entry, place: Place, speech: Speech, remark: str) -> Row:
    """Returns the row of an entry, whose variant is made.

    Raises:
        HybridDeployError: its process failed; the message has the reason.
    """
    began = time.perf_counter()
    model = _model(entry, place)
    files = tuple(str(recording.path.resolve()) for recording in speech.recordings)
    hugging_face = place.models.hugging_face
    task = Task(entry.module, entry.form, entry.beams, str(model), str(hugging_face), files)
    path, log = (place.folder / f"{entry.key}.{suffix}" for suffix in ("json", "log"))
    task.write(path)
    python = sys.executable if entry.is_ours else str(place.rivals)
    command = [python, "-m", "tests.benchmarks.real.worker", str(path)]
    job = Job("", entry.form, 1, str(place.folder))
    try:
        answer = json.loads(run_to_end(command, job, log, _LONGEST_S))
    except (ChildError, OSError) as error:
        raise HybridDeployError(f"{entry.title}: {error}") from error
    decoded = [
        DecodedFile(
            recording.path.name, recording.seconds, tuple(file["tokens"]), file["text"],
            file["encoder_ms"], file["decode_ms"],
        )
        for recording, file in zip(speech.recordings, answer["files"], strict=True)
    ]  # fmt: skip
    bits = variants.decoder_bits(place.bundle, entry.form) if entry.is_ours else None
    size = variants.size_mb(place.bundle, entry.form) if entry.is_ours else _weights_mb(model)
    seconds = time.perf_counter() - began
    return Row(decoded, answer["versions"], answer["peak_mb"], size, bits, remark, seconds)


def _model(entry: Entry, place: Place) -> Path:
    if entry.is_ours:
        return place.bundle
    is_ctranslate2 = entry.module == CTRANSLATE2
    return place.models.ctranslate2 if is_ctranslate2 else place.models.hugging_face


def _weights_mb(folder: Path) -> float:
    """Returns the size of a rival's file of weights."""
    return (
        sum(p.stat().st_size for s in ("bin", "safetensors") for p in folder.glob(f"*.{s}")) / 1e6
    )
