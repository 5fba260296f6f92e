"""`hybrid-deploy inspect`: the variants, graphs and costs of a bundle."""

from __future__ import annotations

import math
from pathlib import Path

import click

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.input_specs import TextInput
from hybrid_deploy.bundle.manifest import GraphSpec, Manifest, TensorSpec
from hybrid_deploy.cli.options.common import BUNDLE
from hybrid_deploy.cli.output import say
from hybrid_deploy.contract import GraphRole, is_memory, is_next_cache, next_cache
from hybrid_deploy.printable import printable
from hybrid_deploy.report import Column, json_text, render

_VARIANTS = (
    Column("variant", "variant"),
    Column("encoder", "encoder"),
    Column("decoder", "decoder"),
    Column("head", "head"),
    Column("opset", "opset", digits=0),
    Column("size_mb", "MB", digits=2),
    Column("cache_kb", "cache KB/sequence", digits=1),
)
_COSTS = (
    Column("variant", "variant"),
    Column("graph", "graph"),
    Column("mflop", "MFLOP", digits=3),
    Column("read_mb", "MB read", digits=3),
    Column("weights_mb", "of weights", digits=3),
    Column("caches_mb", "of caches", digits=3),
    Column("inputs_mb", "of inputs", digits=3),
)
_TENSORS = (
    Column("graph", "graph"),
    Column("direction", ""),
    Column("tensor", "tensor"),
    Column("dtype", "type"),
    Column("shape", "shape"),
)
_BYTES_PER_MB = 1e6
_BYTES_PER_KB = 1e3
_FLOPS_PER_MFLOP = 1e6
_ITEM_BYTES = {"bool": 1, "int64": 8, "float": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@click.command(epilog="Example: hybrid-deploy inspect digits.bundle")
@BUNDLE
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table",
    show_default=True, help="A summary, or the whole manifest.",
)  # fmt: skip
def inspect(bundle: Path, output_format: str) -> None:
    """Show what BUNDLE holds and what its graphs cost, after checking its hashes.

    Costs are counted from the graphs, for one call at typical sizes: step decodes one token of
    every sequence of a batch. FLOP are those of products, two per multiply-add. Read are the
    weights (of an embedding table only the rows looked up), the caches in full, and the inputs.
    """
    opened = open_bundle(bundle)
    if output_format == "json":
        say(json_text(opened.manifest))
        return
    say(report(opened), nl=False)


def report(bundle: Bundle) -> str:
    """Returns what a bundle holds, as tables with a line before each."""
    manifest = bundle.manifest
    typical = ", ".join(f"{printable(name)} {dim.typical}" for name, dim in manifest.dims.items())
    blocks = [
        f"{printable(manifest.name)}: {manifest.parameters:,} parameters, up to "
        f"{manifest.capacity} tokens, by {printable(manifest.producer)}\n",
        *(f"{line}\n" for line in (*prompt_lines(manifest), *speech_lines(manifest))),
        render(_variant_rows(bundle), _VARIANTS, "table"),
        f"Cost of one call with {typical}:\n",
        render(_cost_rows(bundle), _COSTS, "table"),
        render(_tensor_rows(bundle, next(iter(manifest.variants))), _TENSORS, "table"),
    ]
    return "\n".join(blocks)


def prompt_lines(manifest: Manifest) -> list[str]:
    """Returns a line for each template that words are put into, by its reader."""
    from hybrid_deploy.runtime.preprocess.prepare import as_tuple

    texts = [spec for spec in as_tuple(manifest.preprocess) if isinstance(spec, TextInput)]
    templates = [(f"the encoder's {printable(spec.name)}", spec.template) for spec in texts]
    templates.append(("the decoder", manifest.prompt))
    return [
        f"words for {reader}: {template.text!r}"
        + ("" if template.default is None else f", without any {template.default!r}")
        for reader, template in templates
        if template is not None
    ]


def speech_lines(manifest: Manifest) -> list[str]:
    """Returns a line with the languages and tasks of a speech model, and the default ones."""
    speech, start = manifest.speech, manifest.generation.start_tokens
    if speech is None:
        return []
    times = "" if speech.no_timestamps is None else ", timestamps"
    language = speech.language_of(start)
    if language is None:
        return [f"speech: one language{times}"]
    task = next((name for name, token in speech.tasks.items() if token in start), "transcribe")
    codes = " ".join(map(printable, speech.languages))
    return [
        f"speech: languages {codes}, by default {printable(language)}, {printable(task)}{times}"
    ]


def cache_bytes(step: GraphSpec, prefill: GraphSpec | None = None) -> int:
    """Returns the bytes of one sequence's caches.

    A cache is an input that every decoder graph returns updated; memory is not counted.

    Args:
        step: description of the step.
        prefill: description of the prefill graph; None if the variant has none.
    """
    returned = {tensor.name for tensor in step.outputs if is_next_cache(tensor.name)}
    if prefill is not None:
        returned &= {tensor.name for tensor in prefill.outputs}
    caches = (tensor for tensor in step.inputs if next_cache(tensor.name) in returned)
    return sum(_row_bytes(tensor) for tensor in caches if not is_memory(tensor.name))


def _row_bytes(tensor: TensorSpec) -> int:
    """Returns the bytes of one row of a tensor whose first dimension is the batch."""
    sizes = [size for size in tensor.shape[1:] if isinstance(size, int)]
    return math.prod(sizes) * _ITEM_BYTES[tensor.dtype]


def _variant_rows(bundle: Bundle) -> list[dict[str, object]]:
    return [
        {
            "variant": name,
            "encoder": variant.precision.encoder,
            "decoder": variant.precision.decoder,
            "head": variant.head.value,
            "opset": variant.opset,
            "size_mb": bundle.variant_size_bytes(name) / _BYTES_PER_MB,
            "cache_kb": cache_bytes(variant.step, variant.prefill) / _BYTES_PER_KB,
        }
        for name, variant in bundle.manifest.variants.items()
    ]


def _cost_rows(bundle: Bundle) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in bundle.manifest.variants:
        for role, graph in bundle.graphs(name).items():
            row: dict[str, object] = {"variant": name, "graph": role.value}
            cost = graph.cost
            if cost is not None:
                row["mflop"] = cost.flops / _FLOPS_PER_MFLOP
                row["read_mb"] = cost.read_bytes / _BYTES_PER_MB
                row["weights_mb"] = cost.weight_bytes / _BYTES_PER_MB
                row["caches_mb"] = cost.cache_bytes / _BYTES_PER_MB
                row["inputs_mb"] = cost.input_bytes / _BYTES_PER_MB
            rows.append(row)
    return rows


def _tensor_rows(bundle: Bundle, variant: str) -> list[dict[str, object]]:
    rows = []
    for role, graph in bundle.graphs(variant).items():
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
