"""The files of a bundle: graphs with their weights, golden samples, the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from hybrid_deploy import __version__
from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import (
    SCHEMA_VERSION,
    DimRange,
    GoldenSample,
    Manifest,
    Precision,
    Variant,
)
from hybrid_deploy.contract import (
    BATCH_DIM,
    FLOAT_VARIANT,
    LAST,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    Head,
)
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.export_job import TOP_K, ExportJob
from hybrid_deploy.export.lowering.fixed_batch import fix_batch
from hybrid_deploy.export.lowering.output_heads import attach_head, check_head
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step
from hybrid_deploy.onnx_graphs.files import describe, load_graphs, save_graphs
from hybrid_deploy.runtime.preprocess.prepare import is_companion_text
from hybrid_deploy.runtime.session.session import Session


def write_graphs(
    job: ExportJob,
    graphs: Mapping[GraphRole, ir.Model],
    dims: Mapping[str, DimRange],
    folder: Path,
) -> Manifest:
    """Writes graphs, which return logits, and the job's own files.

    Args:
        job: what the export was asked for.
        graphs: the encoder, the step and, unless it steps by itself, the prefill.
        dims: the ranges of their symbolic dimensions.
        folder: of the bundle.

    Returns:
        The manifest of what is there so far.
    """
    for name, content in job.spec.files.items():
        (folder / name).write_bytes(content)
    spec, form = job.spec, job.form
    dims, generation = dict(dims), spec.generation
    if form.batch is not None:
        generation = msgspec.structs.replace(generation, beams=1)  # beams need room for them
        dims[BATCH_DIM] = DimRange(form.batch, form.batch, form.batch)
        for model in graphs.values():
            fix_batch(model, form.batch)
    written = dict(graphs)
    if form.head is Head.LOGITS:
        add_beam_step(written)
    specs = save_graphs(written, _made(folder / FLOAT_VARIANT), FLOAT_VARIANT, dims)
    variant = Variant(
        precision=Precision(encoder=FLOAT_VARIANT, decoder=FLOAT_VARIANT),
        opset=form.opset,
        encoder=specs[GraphRole.ENCODER],
        step=specs[GraphRole.STEP],
        prefill=specs.get(GraphRole.PREFILL),
        beam_step=specs.get(GraphRole.BEAM_STEP),
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=spec.name,
        producer=f"hybrid-deploy {__version__}",
        parameters=sum(p.numel() for p in job.model.parameters()),
        capacity=spec.generation.max_length,
        dims=dims,
        preprocess=spec.preprocess,
        vocabulary=spec.vocabulary,
        generation=generation,
        variants={FLOAT_VARIANT: variant},
        golden=(),
        files={},
    )


def write_golden(bundle: Bundle, job: ExportJob) -> tuple[GoldenSample, ...]:
    """Writes the golden files with what the model itself makes of each.

    Raises:
        InputError: a file cannot be read as the job's `preprocess` says.
    """
    generation = job.spec.generation
    if job.golden and not generation.start_tokens:
        raise UsageError("golden samples need start tokens; give start_tokens or leave them out")
    session = Session(bundle, FLOAT_VARIANT, FullRerun(job.model, generation.max_length))
    samples = []
    for name, content in job.golden.items():
        (_made(bundle.folder / "golden") / name).write_bytes(content)
    for path in (bundle.folder / "golden" / name for name in job.golden):
        if not is_companion_text(path, job.spec.preprocess):
            (result,), _ = session.run_files([path])
            samples.append(GoldenSample(f"golden/{path.name}", result.tokens, result.text or ""))
    return tuple(samples)


def replace_head(job: ExportJob, bundle: Bundle) -> Manifest:
    """Lets prefill and step return the job's head, after comparing it with the logits.

    Raises:
        ParityError: a head gives other tokens than the logits.
    """
    head, manifest = job.form.head, bundle.manifest
    if head is Head.LOGITS:
        return manifest
    variant, graphs = manifest.variants[FLOAT_VARIANT], load_graphs(bundle, FLOAT_VARIANT)
    specs = {}
    for role in bundle.graphs(FLOAT_VARIANT):
        if role is GraphRole.ENCODER:
            continue
        path = bundle.graph_path(FLOAT_VARIANT, role)
        new = path.with_name(f"{role.value}-{head.value}.onnx")
        attach_head(graphs[role], head, TOP_K)
        ir.save(graphs[role], new)
        check_head(path, new, _random_feeds(bundle, role))
        new.replace(path)
        old = bundle.graph(FLOAT_VARIANT, role)
        specs[role.value] = msgspec.structs.replace(describe(graphs[role], old.file), cost=old.cost)
    changed = msgspec.structs.replace(variant, head=head, **specs)
    return msgspec.structs.replace(manifest, variants={FLOAT_VARIANT: changed})


def _random_feeds(bundle: Bundle, role: GraphRole) -> dict[str, np.ndarray]:
    """Returns random inputs of a decoder graph, to compare the head with the logits."""
    rng = np.random.default_rng(0)
    sizes = {name: dim.typical for name, dim in bundle.manifest.dims.items()}
    feeds: dict[str, np.ndarray] = {}
    for tensor in bundle.graph(FLOAT_VARIANT, role).inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
        if tensor.name in (TOKEN, TOKENS, POSITION, LAST):
            feeds[tensor.name] = np.zeros(shape, np.int64)
        elif tensor.dtype == "bool":
            feeds[tensor.name] = np.ones(shape, np.bool_)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
