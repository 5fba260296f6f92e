"""Reads a tokenizer file in a process of its own first, where the library may take long for it.

The library applies the normalizer of a file to its added tokens while it reads the file. A regular
expression may search them for hours, under Python's lock: neither Ctrl-C nor a deadline ends that.
"""

from __future__ import annotations

import subprocess
import sys
import time

from hybrid_deploy.errors import BundleError
from hybrid_deploy.runtime.deadline import StoppedError, deadline
from hybrid_deploy.runtime.host import own_process
from hybrid_deploy.runtime.tokenizer_file import CheckedFile
from hybrid_deploy.scratch import scratch_folder

_READING_S = 10.0
"""Longest time for a file; one of 260,000 tokens takes a second."""


def check_reads_quickly(file: CheckedFile) -> None:
    """Checks that the library reads a file soon; files that it surely reads soon are not tried.

    Raises:
        BundleError: the library had not read the file after ten seconds, or it ended the process.
        StoppedError: it had not read the file at the deadline, see `Until`.
    """
    if file.facts.reads_quickly:
        return
    end = deadline()
    left_s = _READING_S if end is None else min(_READING_S, max(0.0, end - time.perf_counter()))
    try:
        with scratch_folder("tokenizer") as folder:
            trial = subprocess.run(
                own_process.command(__name__),
                input=file.content,
                capture_output=True,
                cwd=folder,
                env=own_process.environment(),
                timeout=left_s,
                check=False,
            )
    except subprocess.TimeoutExpired:
        if left_s < _READING_S:
            raise StoppedError(
                f"{file.origin} was not read when the time was over; give more time"
            ) from None
        raise BundleError(
            f"{file.origin} is not a tokenizer: its added tokens take over {_READING_S:.0f} s to "
            "normalize; export it again"
        ) from None
    if trial.returncode < 0:  # of another failure, the library says the reason when it reads again
        raise BundleError(
            f"{file.origin} is not a tokenizer: the process that read it ended with signal "
            f"{-trial.returncode}; export it again"
        )


def main() -> None:
    """Reads the file on the standard input."""
    own_process.end_with_parent()
    from tokenizers import Tokenizer

    Tokenizer.from_buffer(sys.stdin.buffer.read())


if __name__ == "__main__":
    main()
