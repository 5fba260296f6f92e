"""Bundles with a changed byte, line or file: none is taken for the bundle that was written."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import Manifest
from tests.benchmarks.reliability.row import Row
from tests.benchmarks.reliability.tiny_bundle import manifest_of, sealed
from tests.benchmarks.reliability.trials import FaultError, crash, row_of_trials

_RESEALED, _CRASH = -1, -2
"""Seeds of the planted faults: a changed vocabulary with a right seal, and a crash."""

UNCHANGED = "accepted with the same meaning"


def check(count: int, seed: int, *, bundle: Path | None = None) -> Row:
    """Changes a bundle `count` times and opens it each time.

    Args:
        count: number of changed bundles.
        seed: seed of the first one.
        bundle: bundle that is changed, as a copy; None exports a tiny one.
    """
    return row_of_trials(
        "bundles with a changed byte, line or file",
        "a word of the vocabulary changed and sealed again; a crash",
        lambda original, scratch: MutationTrial(original, scratch / "changed.bundle"),
        range(seed, seed + count),
        (_RESEALED, _CRASH),
        bundle=bundle,
    )


@dataclass(frozen=True)
class MutationTrial:
    """Changes a copy of a bundle and opens it.

    Attributes:
        original: the bundle.
        copy: path of the copy.
    """

    original: Path
    copy: Path

    def __call__(self, seed: int) -> str:
        """Returns that the changed bundle was accepted with the same meaning.

        Raises:
            HybridDeployError: the bundle was refused.
            FaultError: a bundle of another meaning was accepted.
        """
        if seed == _CRASH:
            return crash()
        rng = random.Random(seed)
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)
        change = _reseal_vocabulary if seed == _RESEALED else rng.choice(_CHANGES)
        change(self.copy, rng)
        only = rng.choice((None, "fp32"))
        opened = open_bundle(self.copy, only=only)
        self._check_same(opened.manifest, f"{change.__name__.strip('_')}, only={only}")
        return UNCHANGED

    def _check_same(self, manifest: Manifest, change: str) -> None:
        """Raises a FaultError if the copy is another bundle than the original one."""
        original = open_bundle(self.original).manifest
        if manifest != original:
            raise FaultError(f"accepted another manifest ({change})")
        for name in original.files:
            if (self.copy / name).read_bytes() != (self.original / name).read_bytes():
                raise FaultError(f"accepted another {name} ({change})")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip_a_bit(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _cut(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _append(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 40)))


def _insert(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    path.write_bytes(content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:])


def _change_a_line(folder: Path, rng: random.Random) -> None:
    path = folder / "manifest.json"
    lines = path.read_bytes().split(b"\n")
    index, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        del lines[index]
    elif how == 1:
        lines.insert(other, lines[index])
    elif how == 2:
        lines[index], lines[other] = lines[other], lines[index]
    else:
        lines[index] = bytes(49 + (c - 48 + 1) % 9 if 48 <= c < 58 else c for c in lines[index])
    path.write_bytes(b"\n".join(lines))


def _add_white_space(folder: Path, rng: random.Random) -> None:
    path = folder / "manifest.json"
    lines = path.read_bytes().split(b"\n")
    index = rng.randrange(len(lines))
    lines[index] = rng.choice((b" ", b"\t", b"\r", b"\n")) + lines[index]
    path.write_bytes(b"\n".join(lines))


def _exchange(folder: Path, rng: random.Random) -> None:
    first, second = rng.sample(_files(folder), 2)
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def _remove(folder: Path, rng: random.Random) -> None:
    rng.choice(_files(folder)).unlink()


def _add_a_file(folder: Path, rng: random.Random) -> None:
    home = rng.choice((folder, *(path for path in folder.iterdir() if path.is_dir())))
    (home / f"new{rng.randrange(100)}.bin").write_bytes(rng.randbytes(20))


def _replace_by_something_else(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    content = path.read_bytes()
    path.unlink()
    how = rng.randrange(4)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to(path.name)
    else:
        target = folder.parent / "elsewhere"
        target.write_bytes(content)
        path.symlink_to(target)


def _empty(folder: Path, rng: random.Random) -> None:
    rng.choice(_files(folder)).write_bytes(b"")


def _rename(folder: Path, rng: random.Random) -> None:
    path = rng.choice(_files(folder))
    path.rename(path.with_name(f"{path.name}2"))


def _reseal_vocabulary(folder: Path, rng: random.Random) -> None:
    """Does what nobody can notice without a signature."""
    manifest = manifest_of(folder)
    manifest["vocabulary"]["tokens"][3] = "planted"
    (folder / "manifest.json").write_bytes(sealed(json.dumps(manifest).encode()))


_CHANGES: tuple[Callable[[Path, random.Random], None], ...] = (
    _flip_a_bit, _flip_a_bit, _flip_a_bit, _cut, _append, _insert, _change_a_line, _change_a_line,
    _add_white_space, _exchange, _remove, _add_a_file, _replace_by_something_else, _empty, _rename,
)  # fmt: skip
