"""Random choices that a seed fixes, and a record of what was chosen."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from tests.benchmarks.fuzz_export.wrong import FAULTS

_RARE = 0.02  # a model has some thirty parts, and one refused part refuses the model
_WRONG = 0.15


class Choices:
    """Draws the parts of a random model.

    Args:
        seed: the same seed draws the same model.
        fixed: choices that are not drawn, by topic; for tests and for a reduced model.
    """

    def __init__(self, seed: int, fixed: Mapping[str, str] | None = None) -> None:
        self._random = random.Random(seed)
        self._fixed = dict(fixed or {})
        self.record: dict[str, str] = {}

    def one(self, topic: str, usual: Sequence[str], rare: Sequence[str] = ()) -> str:
        """Returns one of several names: mostly one of the usual names.

        Args:
            topic: name of the choice in the record.
            usual: names of parts that most models have.
            rare: names of parts that few models have, or that make a model impossible to export.
        """
        names = rare if rare and self._random.random() < _RARE else usual
        drawn = self._random.choice(names)
        self.record[topic] = self._fixed.get(topic, drawn)
        return self.record[topic]

    def wrong(self) -> str:
        """Returns the fault of a model that has to be refused; "none" for most models."""
        faulty = self._random.random() < _WRONG
        return self.one("wrong", FAULTS if faulty else ["none"])

    def size(self, *sizes: int) -> int:
        """Returns one of several sizes."""
        return self._random.choice(sizes)

    def between(self, least: int, most: int) -> int:
        """Returns a whole number from `least` to `most`."""
        return self._random.randint(least, most)

    def __str__(self) -> str:
        """Returns the record in one line, as `norm=layer mask=tril`."""
        return " ".join(f"{topic}={name}" for topic, name in self.record.items())
