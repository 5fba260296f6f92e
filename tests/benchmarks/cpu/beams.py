"""Compares beam search with shared memory (the encoder's output) and with a copy per beam.

Run as `python -m tests.benchmarks.cpu.beams BUNDLE`.

The inputs are random, at typical sizes, and the search runs on one thread. Times are CPU times of
the process during the search, so other work on the machine does not count.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import msgspec
import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from hybrid_deploy.runtime.generation.beam_search import BeamSearch
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.runtime.generation.settings import Beams, DecodingSettings

_SHARED, _COPIED = "shared", "copied"
_KB_PER_MB = 1e3
_COLUMNS = (
    Column("variant", "variant"),
    Column("inputs", "inputs"),
    Column("beams", "beams"),
    Column("memory", "memory"),
    Column("step_ms", "CPU ms/step", digits=2),
    Column("held_mb", "MB before the search", digits=0),
    Column("peak_mb", "peak MB in it", digits=0),
)


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--variant", "variants", multiple=True, default=("fp32",))
@click.option("--inputs", default=1, show_default=True)
@click.option("--beams", default=4, show_default=True)
@click.option("--tokens", default=32, show_default=True)
@click.option("--child", type=click.Choice([_SHARED, _COPIED]), hidden=True)
def main(
    path: Path, variants: tuple[str, ...], inputs: int, beams: int, tokens: int, child: str | None
) -> None:
    """Search with each variant of a bundle, each in a process of its own."""
    if child is not None:
        click.echo(json.dumps(measure(path, variants[0], inputs, beams, tokens, child)))
        return
    rows = []
    for variant in variants:
        for memory in (_COPIED, _SHARED):
            rows.append(_measure_in_child(path, variant, inputs, beams, tokens, memory))
    click.echo(render(rows, _COLUMNS, "md"), nl=False)


def _measure_in_child(
    path: Path, variant: str, inputs: int, beams: int, tokens: int, memory: str
) -> dict[str, object]:
    """Runs `measure` in a process of its own and returns its row."""
    command = [sys.executable, "-m", "tests.benchmarks.cpu.beams", str(path), "--variant", variant]
    for name, number in (("inputs", inputs), ("beams", beams), ("tokens", tokens)):
        command += [f"--{name}", str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        [*command, "--child", memory], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    row: dict[str, object] = json.loads(printed)
    return row


def measure(
    path: Path, variant: str, inputs: int, beams: int, tokens: int, memory: str
) -> dict[str, object]:
    """Measures a beam search in this process; a first search warms up.

    Args:
        path: folder of the bundle.
        variant: name of the variant.
        inputs: number of encoder inputs in the batch.
        beams: number of beams of each input.
        tokens: number of new tokens.
        memory: `shared` or `copied`.

    Returns:
        A row of the table: CPU milliseconds of a step, and MB before and at the peak of the search.
    """
    bundle = open_bundle(path, only=variant)
    if memory == _COPIED:
        bundle = without_beam_step(bundle, variant)
    backend = load_backend("onnxruntime", bundle, variant, BackendOptions(threads=1))
    capacity, start = bundle.manifest.capacity, list(bundle.manifest.generation.start_tokens)
    limits = Limits((), 0, None, capacity, max_new_tokens=tokens)
    settings = DecodingSettings(limits, beams=Beams(beams))
    arrays = _random_inputs(bundle, variant, inputs)
    held_mb = 0.0
    for _ in range(2):
        search = BeamSearch(backend.start(arrays), [start] * inputs, settings)
        held_mb = _status_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        began = time.process_time()
        steps = len(search.run().step_ms)
        cpu_ms = (time.process_time() - began) * 1e3
        del search
    return {
        "variant": variant, "inputs": inputs, "beams": beams, "memory": memory,
        "step_ms": cpu_ms / steps, "held_mb": held_mb, "peak_mb": _status_mb("VmHWM"),
    }  # fmt: skip


def _random_inputs(bundle: Bundle, variant: str, batch: int) -> dict[str, NDArray[np.float32]]:
    """Returns float32 noise for every encoder input; free axes have their typical size."""
    rng = np.random.default_rng(0)
    dims = {name: dim.typical for name, dim in bundle.manifest.dims.items()} | {"batch": batch}
    return {
        spec.name: rng.standard_normal(
            [s if isinstance(s, int) else dims[s] for s in spec.shape], np.float32
        )
        for spec in bundle.graph(variant, GraphRole.ENCODER).inputs
    }


def without_beam_step(bundle: Bundle, variant: str) -> Bundle:
    """Returns the bundle without the variant's beam step graph, so that beams copy the memory."""
    plain = msgspec.structs.replace(bundle.variant(variant), beam_step=None)
    variants = bundle.manifest.variants | {variant: plain}
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, variants=variants))


def _status_mb(name: str) -> float:
    """Returns a RAM figure of this process in MB, by its name in Linux's status file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, f"/proc/self/status has no {name}"
    return int(match[1]) / _KB_PER_MB


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.cpu.beams")
