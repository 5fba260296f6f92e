"""`hybrid-deploy inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from hybrid_deploy.bundle import Bundle, open_bundle
from hybrid_deploy.cli.options import BUNDLE
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.manifest import TensorSpec
from hybrid_deploy.report import Column, render

_VARIANTS = (
    Column("variant", "variant"),
    Column("encoder", "encoder"),
    Column("decoder", "decoder"),
    Column("opset", "opset", digits=0),
    Column("size_mb", "MB", digits=2),
)
_TENSORS = (
    Column("graph", "graph"),
    Column("direction", ""),
    Column("tensor", "tensor"),
    Column("dtype", "type"),
    Column("shape", "shape"),
)
_BYTES_PER_MB = 1e6


@click.command(epilog="Example: hybrid-deploy inspect digits.bundle")
@BUNDLE
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table",
    show_default=True, help="A summary, or the whole manifest.",
)  # fmt: skip
def inspect(bundle: Path, output_format: str) -> None:
    """Show what BUNDLE holds, after checking its hashes."""
    opened = open_bundle(bundle)
    if output_format == "json":
        raw = msgspec.json.encode(opened.manifest)
        click.echo(msgspec.json.format(raw, indent=1).decode())
        return
    manifest = opened.manifest
    click.echo(
        f"{manifest.name}: {manifest.parameters:,} parameters, up to {manifest.capacity} tokens, "
        f"by {manifest.producer}\n"
    )
    click.echo(render(_variant_rows(opened), _VARIANTS, "table"))
    first = next(iter(manifest.variants))
    click.echo(render(_tensor_rows(opened, first), _TENSORS, "table"), nl=False)


def _variant_rows(bundle: Bundle) -> list[dict[str, object]]:
    return [
        {
            "variant": name,
            "encoder": variant.precision.encoder,
            "decoder": variant.precision.decoder,
            "opset": variant.opset,
            "size_mb": bundle.variant_size_bytes(name) / _BYTES_PER_MB,
        }
        for name, variant in bundle.manifest.variants.items()
    ]


def _tensor_rows(bundle: Bundle, variant: str) -> list[dict[str, object]]:
    rows = []
    for role in GraphRole:
        graph = bundle.graph(variant, role)
        rows += [_tensor_row(role, "in", tensor) for tensor in graph.inputs]
        rows += [_tensor_row(role, "out", tensor) for tensor in graph.outputs]
    return rows


def _tensor_row(role: GraphRole, direction: str, tensor: TensorSpec) -> dict[str, object]:
    shape = " x ".join(str(size) for size in tensor.shape)
    return {
        "graph": role.value,
        "direction": direction,
        "tensor": tensor.name,
        "dtype": tensor.dtype,
        "shape": shape,
    }
