"""Exchanges the files of a bundle for those of another one, and back, until its stdin is closed.

Run as `python -m tests.benchmarks.reliability.swapper BUNDLE OTHER SEED`. It imports nothing large,
so that it is ready at once and takes no time from the loads.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time
from pathlib import Path

_EXCHANGED_S, _PAUSE_S = 0.001, 0.002


def swap(bundle: Path, other: Path, seed: int) -> None:
    """Exchanges one file after another for a moment; the times of a file stay as they were."""
    rng = random.Random(seed)
    names = sorted(p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file())
    contents = {name: ((bundle / name).read_bytes(), (other / name).read_bytes()) for name in names}
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        name = rng.choice(names)
        put = rng.choice((_rename, _overwrite))
        original, exchanged = contents[name]
        put(bundle / name, exchanged)
        time.sleep(rng.random() * _EXCHANGED_S)
        put(bundle / name, original)
        time.sleep(rng.random() * _PAUSE_S)


def _rename(path: Path, content: bytes) -> None:
    """Renames another file to the place of this one."""
    status, new = path.stat(), path.with_name(f".{path.name}.new")
    new.write_bytes(content)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def _overwrite(path: Path, content: bytes) -> None:
    """Writes into the file itself, and sets its time back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


if __name__ == "__main__":
    swap(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
