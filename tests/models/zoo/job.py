"""One case in a process of its own."""

from __future__ import annotations

import time

import click
import torch

from tests.models.zoo.cases import find
from tests.models.zoo.check import Result, check


def check_named(name: str, place: str, opsets: tuple[int, ...], tensorrt: bool) -> Result:
    """Checks the case of that name; says on stderr how it goes, after its `place` in the run."""
    torch.set_num_threads(1)
    began = time.perf_counter()

    def say(stage: str) -> None:
        click.echo(f"{place} {name}: {stage}", err=True)

    result = check(find(name), opsets=opsets, tensorrt=tensorrt, progress=say)
    say(f"{result.verdict} ({time.perf_counter() - began:.0f} s)")
    return result
