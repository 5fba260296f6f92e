"""A soak in a process that holds nothing else.

Run as `python -m tests.benchmarks.soak.child BUNDLE PICTURE [LEAK]`.

Free memory of a process that did other things before would hide what leaks.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO

from hybrid_deploy.runtime.session.session import load_session
from tests.benchmarks.soak.growth import Growth, soak
from tests.benchmarks.soak.workload import Workload

RUNS, WARMUP = 300, 100
LEAKED_BYTES, RUNS_PER_FILE = 65536, 50


def soaked(bundle: Path, picture: Path, leak: str = "") -> Growth:
    """Runs the short soak; `memory` keeps 64 KiB in each run, `files` a file in every 50th."""
    workload = Workload(load_session(bundle, threads=1), picture)
    kept: list[bytearray | IO[bytes]] = []

    def run(number: int) -> None:
        workload(number)
        if leak == "memory":
            kept.append(bytearray(b"x" * LEAKED_BYTES))
        elif leak == "files" and number % RUNS_PER_FILE == 0:
            kept.append(picture.open("rb"))

    return soak(run, RUNS, WARMUP)


if __name__ == "__main__":
    found = soaked(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    print(json.dumps(asdict(found)))
