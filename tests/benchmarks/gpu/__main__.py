"""`make gpu-bench`: time per token on a GPU, for this project, PyTorch and ONNX Runtime.

Run as `python -m tests.benchmarks.gpu`. The table also has the shortest possible time, the floor.
The benchmark has not run on a GPU yet.
"""

from __future__ import annotations

import datetime
import platform
import tempfile
from pathlib import Path

import click
import torch

from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.report import Column, render
from hybrid_deploy.runtime.engines.build import build_engines
from hybrid_deploy.runtime.host.local_gpu import local_gpu
from hybrid_deploy.target import parse_target
from tests.benchmarks.gpu.floor import Floor, measure_floor
from tests.benchmarks.gpu.rivals import RIVALS, Setting
from tests.benchmarks.gpu.subjects import NAMES, Subject, make_subject
from tests.benchmarks.gpu.timing import SkippedError

COLUMNS = (
    Column("model", "model"),
    Column("batch", "batch"),
    Column("rival", "loop"),
    Column("gpu_ms", "GPU ms/token", digits=4),
    Column("host_ms", "host ms/token", digits=4),
    Column("floor_ms", "floor ms", digits=4),
    Column("times", "x floor", digits=1),
    Column("note", "note"),
)


@click.command()
@click.option("--model", "names", multiple=True, type=click.Choice(NAMES), help="Repeatable.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=1), default=(1, 8))
@click.option("--variant", default="fp16", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--rival", "chosen", multiple=True, type=click.Choice(tuple(RIVALS)))
@click.option("--work", type=click.Path(path_type=Path), help="Folder that keeps the bundles.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file.")
@click.option("--cpu", is_flag=True, help="Try the command on a CPU.")
def main(
    names: tuple[str, ...],
    batches: tuple[int, ...],
    variant: str,
    rounds: int,
    chosen: tuple[str, ...],
    work: Path | None,
    out: Path | None,
    cpu: bool,
) -> None:
    """Time the decoder's loop of every model, batch size and rival."""
    device = "cpu" if cpu else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("PyTorch sees no GPU here; --cpu tries the command without one")
    floor = measure_floor(device, 1 << 24) if cpu else measure_floor(device)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NAMES:
            subject = make_subject(name, variant, work or Path(folder))
            kernels = None if cpu else _build(subject)
            for batch in batches:
                setting = Setting(subject, batch, subject.sizes().capacity, rounds, device)
                limit = floor.step_ms(subject, batch, kernels)
                rows += [_row(setting, rival, limit) for rival in chosen or RIVALS]
    text = f"{_heading(device, variant, floor)}\n{render(rows, COLUMNS, 'md')}"
    click.echo(text, nl=False)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def _row(setting: Setting, rival: str, limit: float | None) -> dict[str, object]:
    row: dict[str, object] = {"model": setting.subject.name, "batch": setting.batch, "rival": rival}
    click.echo(f"{row['model']} x {row['batch']}: {rival}", err=True)
    try:
        timing = RIVALS[rival](setting)
    except SkippedError as error:
        return row | {"note": f"skipped: {error}"}
    except Exception as error:  # one rival's failure must not cost the others' measurements
        return row | {
            "note": f"failed: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
        }
    measured = timing.host_ms if timing.gpu_ms is None else timing.gpu_ms
    times = None if limit is None else measured / limit
    return row | {
        "gpu_ms": timing.gpu_ms, "host_ms": timing.host_ms, "floor_ms": limit, "times": times,
        "note": timing.note,
    }  # fmt: skip


def _build(subject: Subject) -> int | None:
    """Builds the engines; returns the number of a step's kernels, None if TensorRT hides it."""
    try:
        records = build_engines(subject.bundle, subject.variant, parse_target("local"))
    except HybridDeployError as error:
        click.echo(f"no engines for {subject.name}: {error}", err=True)
        return None
    step = next(record for record in records if record.role is GraphRole.STEP)
    counts = [kernels.count for kernels in step.layers.kernels] if step.layers else []
    return sum(counts) or None


def _heading(device: str, variant: str, floor: Floor) -> str:
    gpu = local_gpu()
    where = platform.processor() or "a CPU" if device == "cpu" or gpu is None else gpu.name
    kernel = (
        "" if floor.kernel_ms is None else f", {floor.kernel_ms * 1e3:.2f} us a recorded kernel"
    )
    return f"""# Tokens per step, measured

`python -m tests.benchmarks.gpu` on {where}, {datetime.date.today()}, PyTorch {torch.__version__},
{variant}. Times are medians per token of the batch; GPU time is measured between two events around
the loop. The floor is the larger of two times. One is the time to read the data of a step (weights,
caches, memory) at the measured bandwidth
({floor.bytes_per_s / 1e9:.0f} GB/s read and written{kernel}). The other, if the number of the
engine's kernels is known, is that number times the time of a tiny kernel in a recorded CUDA graph.
PyTorch's rows are a hand-written decoder of the same sizes with random weights, whose sequences are
all at the same position.
"""


if __name__ == "__main__":
    main()
