"""Measures the seconds of each export stage and the peak RAM, on a decoder with random weights.

Run as `python -m tests.benchmarks.export_cost [--layers 6 --width 512 --vocabulary 32000]`.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.report import Column, render

COLUMNS = (
    Column("stage", "stage"),
    Column("seconds", "s", digits=1),
    Column("peak_mb", "peak MB so far", digits=0),
)
_KB_PER_MB = 1e3
_BYTES_PER_MB = 1e6
_HEAD_WIDTH = 64


class Reader(nn.Module):
    """A convolutional patch encoder and an ordinary nn.TransformerDecoder."""

    def __init__(self, layers: int, width: int, vocabulary: int, max_length: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, width, (32, 4), stride=(32, 4))
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(max_length, width)
        heads = max(1, width // _HEAD_WIDTH)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.head = nn.Linear(width, vocabulary)
        for parameter in self.parameters():  # equal copies of a layer would be stored once
            nn.init.normal_(parameter, std=0.02)

    def encode(self, image: Tensor) -> Tensor:
        memory: Tensor = self.encoder(image).flatten(2).transpose(1, 2)
        return memory

    def decode(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        rows = self.embedding(tokens) + self.positions(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        logits: Tensor = self.head(self.decoder(rows, memory, tgt_mask=mask))
        return logits


def peak_mb() -> float:
    """Returns the peak RAM of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KB_PER_MB


def main() -> None:
    """Exports into a temporary folder and prints the seconds and the RAM of each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--opset", type=int, default=24)
    options = parser.parse_args()
    libraries_mb = peak_mb()
    torch.manual_seed(0)
    sizes = options.layers, options.width, options.vocabulary, options.max_length
    model = Reader(*sizes).eval()
    weights_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / _BYTES_PER_MB
    peaks: list[float] = []

    def note_peak(stage: str, done: int, total: int) -> None:
        if done == total:
            peaks.append(peak_mb())

    with tempfile.TemporaryDirectory() as folder:
        report = export_model(
            model,
            torch.zeros(1, 1, 32, 128),
            Path(folder, "out.bundle"),
            max_length=options.max_length,
            start_tokens=1,
            end_tokens=2,
            dynamic={"image": {3: ("width", 32, 512)}},
            opset=options.opset,
            progress=note_peak,
        )
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    stages = [*report.stage_seconds.items(), ("total", sum(report.stage_seconds.values()))]
    rows = [
        {"stage": stage, "seconds": seconds, "peak_mb": peak}
        for (stage, seconds), peak in zip(stages, [*peaks, peak_mb()], strict=True)
    ]
    print(render(rows, COLUMNS, "table"), end="")
    used = peak_mb() - libraries_mb
    print(
        f"weights {weights_mb:.0f} MB, bundle {size / _BYTES_PER_MB:.0f} MB; "
        f"peak {peak_mb():.0f} MB, of which {libraries_mb:.0f} MB libraries: "
        f"{used / weights_mb:.1f} times the weights"
    )


if __name__ == "__main__":
    main()
