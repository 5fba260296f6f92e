"""Checks the number of files in a folder and of lines in a file: a part of `make lint`.

A folder is called a room. A room with too many files, or a file with more than one concept, no
longer shows a reader by its path where a behaviour is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
MOST_FILES: Mapping[str, int] = {
    "hybrid_deploy": 22,
    "export": 14,
    "calibration": 14,
    "runtime": 14,
    "tests": 22,
}
"""Largest number of Python files in one folder, by the top folder that it is in."""

_README, _INIT = "README.md", "__init__.py"
_MADE = ("build", "dist", "quickstart")  # folders that the make targets write, not tracked
_WITH_README = ("hybrid_deploy", "export", "calibration", "runtime")


@dataclass(frozen=True)
class Room:
    """One folder of Python files.

    Attributes:
        path: path of the folder, relative to the repository, with slashes.
        files: number of Python files in the folder itself.
        longest: name of the file with the most lines.
        lines: number of lines of that file.
        most_files: largest number of files that this folder may hold.
    """

    path: str
    files: int
    longest: str
    lines: int
    most_files: int


def rooms(root: Path) -> Iterator[Room]:
    """Measures every folder with Python files; symbolic links are not followed."""
    for top, most_files in MOST_FILES.items():
        for folder in (root / top, *sorted(_real_folders(root / top))):
            lengths = {
                path.name: _count_lines(path) for path in folder.glob("*.py*") if _is_python(path)
            }
            if lengths:
                longest = max(lengths, key=lambda name: lengths[name])
                relative = folder.relative_to(root).as_posix()
                yield Room(relative, len(lengths), longest, lengths[longest], most_files)


def faults(root: Path) -> list[str]:
    """Returns one line for each broken limit; an empty list if all limits hold.

    A source folder without `__init__.py` is one too: import-linter would not see it.
    """
    measured = list(rooms(root))
    broken = [f"{top} holds no Python file" for top in MOST_FILES if not _has(measured, top)]
    broken += [f"{path} stands in no room" for path in _outside(root)]
    for room in measured:
        is_package = (root / room.path / _INIT).is_file()
        if room.path.split("/")[0] in _WITH_README and not is_package:
            broken.append(f"{room.path} has no {_INIT}")
    for room in measured:
        if room.files > room.most_files:
            broken.append(f"{room.path} holds {room.files} files, {room.most_files} at most")
        if room.lines > MOST_LINES:
            broken.append(
                f"{room.path}/{room.longest} has {room.lines} lines, {MOST_LINES} at most"
            )
    broken += [
        f"{top} has no {_README}" for top in _WITH_README if not (root / top / _README).is_file()
    ]
    return broken


def _has(measured: list[Room], top: str) -> bool:
    return any(room.path.split("/")[0] == top for room in measured)


def _real_folders(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and path.name != "__pycache__":
            yield path
            yield from _real_folders(path)


def _outside(root: Path) -> Iterator[str]:
    """Lists the Python files that belong to none of the parts, as relative paths."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in (*root.glob("*.py"), *(f for folder in folders for f in folder.rglob("*.py"))):
        relative = path.relative_to(root)
        if relative.parts[0] not in (*MOST_FILES, *_MADE):
            yield relative.as_posix()


def _is_python(path: Path) -> bool:
    return path.suffix in (".py", ".pyi")


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Prints the fullest room and the longest file of each top folder, then every fault."""
    measured = list(rooms(ROOT))
    for top in MOST_FILES:
        below = [room for room in measured if room.path.split("/")[0] == top]
        fullest = max(below, key=lambda room: room.files)
        longest = max(below, key=lambda room: room.lines)
        print(
            f"{top}: {fullest.files} of {fullest.most_files} files in {fullest.path}, "
            f"{longest.lines} of {MOST_LINES} lines in {longest.path}/{longest.longest}"
        )
    broken = faults(ROOT)
    print(*broken, sep="\n", file=sys.stderr, end="\n" if broken else "")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
