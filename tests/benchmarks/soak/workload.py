"""Generations of every kind on one session, also failing and abandoned ones."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session

_KINDS: tuple[GenerateOptions | None, ...] = (
    None,
    GenerateOptions(beams=3, n_best=2),
    GenerateOptions(temperature=2.0, top_p=0.9, seed=1),
    GenerateOptions(allowed="[a-h]+", stop=("ab",)),
    GenerateOptions(timeout_s=1e-9),
)


class Workload:
    """Runs another kind of generation in each call, on an input of another size."""

    def __init__(self, session: Session, picture: Path) -> None:
        self._session = session
        self._picture = picture
        self._cancelled = threading.Event()
        self._cancelled.set()

    def __call__(self, number: int) -> None:
        """Runs the kind of generation that belongs to a run's number."""
        rng = np.random.default_rng(number % 97)
        size = (1 + number % 3, 1, 8, 16 + 8 * (number % 5))
        image: dict[str, NDArray[Any]] = {"image": rng.standard_normal(size).astype(np.float32)}
        kind = number % (len(_KINDS) + 5)
        if kind < len(_KINDS):
            self._session.run_arrays(image, options=_KINDS[kind], prompt=[1, 4][: number % 3])
        elif kind == len(_KINDS):
            with self._session.stream(image) as stream:
                next(stream)
        elif kind == len(_KINDS) + 1:
            self._session.run_arrays(image, cancel=self._cancelled)
        elif kind == len(_KINDS) + 2:
            self._session.run_files([self._picture])
        elif kind == len(_KINDS) + 3:
            list(self._session.run_many([self._picture, image, self._picture.parent / "none"]))
        else:
            image["image"][0, 0, 0, 0] = np.nan
            with contextlib.suppress(HybridDeployError):
                self._session.run_arrays(image)
