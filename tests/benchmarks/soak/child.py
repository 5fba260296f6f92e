"""A short soak in a process of its own.

Run as `python -m tests.benchmarks.soak.child BUNDLE PICTURE [LEAK]`.

In a process that did other work before, a leak could reuse freed RAM and stay unseen.
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


def run_soak(bundle: Path, picture: Path, leak: str = "") -> Growth:
    """Runs the short soak with an optional leak.

    Args:
        bundle: folder of the bundle.
        picture: image file to decode.
        leak: `memory` leaks 64 KiB in each run, `files` an open file in every 50th run; empty
            leaks nothing.
    """
    workload = Workload(load_session(bundle, threads=1), picture)
    leaked: list[bytearray | IO[bytes]] = []

    def run(number: int) -> None:
        workload(number)
        if leak == "memory":
            leaked.append(bytearray(b"x" * LEAKED_BYTES))
        elif leak == "files" and number % RUNS_PER_FILE == 0:
            leaked.append(picture.open("rb"))

    return soak(run, RUNS, WARMUP)


if __name__ == "__main__":
    growth = run_soak(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    print(json.dumps(asdict(growth)))
