"""A model that the exporter must refuse, with the words of the refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.models.zoo.case import Case


@dataclass(frozen=True)
class Refusal:
    """A model that the exporter must refuse.

    Attributes:
        case: the model and its inputs.
        message: regular expression that the message must match.
        line: text of the line that the message must name; None if it names no line.
        file: file that the line stands in.
    """

    case: Case
    message: str
    line: str | None = None
    file: Path = Path(__file__)

    @property
    def name(self) -> str:
        """The name of the case."""
        return self.case.name

    def missing(self, message: str) -> str | None:
        """Returns the first regular expression that a message does not match, if any."""
        patterns = [self.message] + ([] if self.line is None else [self._line_pattern(self.line)])
        return next((pattern for pattern in patterns if not re.search(pattern, message)), None)

    def _line_pattern(self, line: str) -> str:
        """Returns a regular expression for the file and number of a line in a message."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        numbers = [n for n, text in enumerate(lines, 1) if text.strip() == line]
        assert len(numbers) == 1, f"{line!r} stands in {len(numbers)} lines"
        return rf'{re.escape(self.file.name)}"?(?:, line |:){numbers[0]}\b'
