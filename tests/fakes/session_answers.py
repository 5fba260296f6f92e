"""The answers of a session of the tiny bundle, which need every graph and the tokenizer.

Run as `python -m tests.fakes.session_answers BUNDLE CHANGE`, it prints the answers after it has
changed the bundle's files in one way, behind the loaded session. A session that reads them then
answers otherwise, or ends the process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session, load_session

Answers = dict[str, list[str | None]]
"""The texts of the sequences of a batch, by the way of decoding."""

LONG_PROMPT = (1, 4, 5, 6, 7, 8)
"""A prompt that is long enough for the prefill graph."""


def answers(session: Session, seed: int = 0) -> Answers:
    """Returns the texts of some noise by the way of decoding."""
    image = np.random.default_rng(seed).standard_normal((2, 1, 8, 24)).astype(np.float32)
    inputs = {"image": image}
    with session.stream(inputs) as stream:
        for _ in stream:
            pass
    runs = {
        "greedy": session.run_arrays(inputs)[0],
        "prompt": session.run_arrays(inputs, prompt=LONG_PROMPT)[0],
        "beams": session.run_arrays(inputs, options=GenerateOptions(beams=3))[0],
        "stream": stream.results,
    }
    return {name: [result.text for result in results] for name, results in runs.items()}


def _cut(path: Path) -> None:
    os.truncate(path, 0)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\x3f" * path.stat().st_size)


def _replace(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"\x3f" * size)


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "cut": _cut,
    "overwritten": _overwrite,
    "replaced": _replace,
    "deleted": Path.unlink,
}
"""What happens to each file of a bundle, by its name."""


def change_all(folder: Path, change: str) -> None:
    """Changes every file of a bundle in one way."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        CHANGES[change](path)
    if change == "deleted":
        shutil.rmtree(folder)


if __name__ == "__main__":
    bundle = Path(sys.argv[1])
    loaded = load_session(bundle, threads=1)
    change_all(bundle, sys.argv[2])
    texts = answers(loaded)
    print(json.dumps([texts, loaded.run_arrays({"image": np.zeros((1, 1, 8, 16), "f")})[1].notes]))
