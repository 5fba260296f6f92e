"""Checks one case in a separate process."""

from __future__ import annotations

import time

import click
import torch

from tests.models.zoo.cases import find
from tests.models.zoo.check import Result, check


def check_by_name(name: str, label: str, opsets: tuple[int, ...], tensorrt: bool) -> Result:
    """Checks the case with the given name, and prints its stages on stderr.

    Args:
        name: name of the case.
        label: number of the case in the run, printed before its name: `[3/82]`.
        opsets: opsets to export with.
        tensorrt: whether to build the step for TensorRT.
    """
    torch.set_num_threads(1)
    began = time.perf_counter()

    def report(stage: str) -> None:
        click.echo(f"{label} {name}: {stage}", err=True)

    result = check(find(name), opsets=opsets, tensorrt=tensorrt, progress=report)
    report(f"{result.verdict} ({time.perf_counter() - began:.0f} s)")
    return result
