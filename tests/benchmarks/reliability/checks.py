"""The checks of `make reliability` by name, each in a module of its own, and how one is run."""

from __future__ import annotations

import importlib
import importlib.util
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks.reliability.row import Row

_FOLDER = "tests.benchmarks.reliability"


@dataclass(frozen=True)
class Check:
    """A check: a module with a function `check(count, seed)` that returns a row of the page.

    Attributes:
        module: name of the module.
        count: number of trials of a whole run, in the check's own unit.
    """

    module: str
    count: int

    @property
    def is_there(self) -> bool:
        """Whether the module exists."""
        return importlib.util.find_spec(self.module) is not None

    def scaled(self, share: float) -> int:
        """Returns the number of trials of a share of a whole run, at least one."""
        return max(1, round(self.count * share))


CHECKS: Mapping[str, Check] = {
    "soak_slope": Check(f"{_FOLDER}.soak_slope", 1_800),  # seconds
    "mutations": Check(f"{_FOLDER}.mutations", 10_000),
    "manifests": Check(f"{_FOLDER}.manifests", 5_000),
    "graphs": Check(f"{_FOLDER}.graphs", 2_000),
    "tokenizer_files": Check(f"{_FOLDER}.tokenizer_files", 5_000),
    "inputs": Check(f"{_FOLDER}.inputs", 5_000),  # of each kind
    "options": Check(f"{_FOLDER}.options", 5_000),
    "command_lines": Check(f"{_FOLDER}.command_lines", 3_000),
    "swaps": Check(f"{_FOLDER}.swaps", 500),
    "threads": Check(f"{_FOLDER}.threads", 180),  # seconds
    "kills": Check(f"{_FOLDER}.disk.kills", 300),
    "disk_full": Check(f"{_FOLDER}.disk.disk_full", 300),  # more than there are writes
    "builders": Check(f"{_FOLDER}.disk.builders", 160),
    "hostile": Check(f"{_FOLDER}.disk.hostile", 40),  # more than there are scenes
}
"""All checks, those that take longest first."""


def run_check(name: str, check: Check, count: int, seed: int) -> Row:
    """Runs a check; an exception is a fault of its row."""
    began = time.perf_counter()
    try:
        row: Row = importlib.import_module(check.module).check(count, seed)
    except Exception as error:
        lines = traceback.format_exception(error)
        return Row(name, 0, "broke off", ("".join(lines),), "-", False, time.perf_counter() - began)
    return row
