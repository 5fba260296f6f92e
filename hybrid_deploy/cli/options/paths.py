"""The type of arguments and options that are paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class _PathType(click.Path):
    """A path; an empty text, as an unset variable of a shell leaves it, names none.

    Python takes an empty path for the current folder.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a path was expected, got an empty text; is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


PATH = _PathType(path_type=Path)
"""Type of a path, whatever lies there."""

FOLDER = _PathType(path_type=Path, exists=True, file_okay=False)
"""Type of the path of a folder that exists."""

INPUT = _PathType(path_type=Path, readable=False)
"""Type of the path of an input file; one that cannot be read stops no other."""
