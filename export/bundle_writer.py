"""Writes the files of a bundle: graphs with their weights, golden samples, the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from torch import Tensor

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import (
    SCHEMA_VERSION,
    DimRange,
    GenerationDefaults,
    GoldenSample,
    Manifest,
    Precision,
    Variant,
)
from hybrid_deploy.bundle.paths import GOLDEN_FOLDER
from hybrid_deploy.contract import (
    BATCH_DIM,
    FLOAT_VARIANT,
    LAST,
    LOGITS,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    Head,
)
from hybrid_deploy.errors import InputError, NotFiniteError, UnsupportedModelError
from hybrid_deploy.export.export_job import TOP_K, ExportJob
from hybrid_deploy.export.lowering.fixed_batch import fix_batch
from hybrid_deploy.export.lowering.output_heads import attach_head, check_head
from hybrid_deploy.export.model.dynamic_axes import DynamicAxes, resized
from hybrid_deploy.export.model.interface import has_custom_step
from hybrid_deploy.export.parity.reference_backend import FullRerun
from hybrid_deploy.onnx_graphs.beam_step import add_beam_step
from hybrid_deploy.onnx_graphs.files import describe, load_graphs, save_graphs
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.preprocess.array_files import ARRAYS_SUFFIX
from hybrid_deploy.runtime.preprocess.prepare import is_companion_text
from hybrid_deploy.runtime.session.session import Session
from hybrid_deploy.version import __version__

EXAMPLE_FILE = f"example{ARRAYS_SUFFIX}"
"""File of the example in a bundle without other golden samples."""

_EXAMPLE_TOKENS = 64
"""Largest number of tokens that the model itself decodes from its example."""


@dataclass(frozen=True)
class WrittenGraphs:
    """The float32 variant after its graphs are written to the bundle's folder.

    Attributes:
        variant: entry of the manifest that describes the graphs.
        dims: range of every symbolic dimension of the graphs, by name.
        generation: the job's generation defaults, with one beam where the batch is fixed.
    """

    variant: Variant
    dims: dict[str, DimRange]
    generation: GenerationDefaults


def write_graphs(
    job: ExportJob,
    graphs: Mapping[GraphRole, ir.Model],
    dims: Mapping[str, DimRange],
    folder: Path,
) -> WrittenGraphs:
    """Writes the graphs, which return logits, and the job's additional files.

    Args:
        job: the model and the options of the export.
        graphs: encoder, step and, unless the model has its own step, prefill; changed in place
            where the job fixes the batch size.
        dims: range of every symbolic dimension of the graphs, by name.
        folder: the bundle's folder, which exists.

    Returns:
        The description of the written graphs.
    """
    for name, content in job.spec.files.items():
        (folder / name).write_bytes(content)
    form, dims, generation = job.form, dict(dims), job.spec.generation
    if form.batch is not None:
        generation = msgspec.structs.replace(
            generation, beams=1
        )  # a fixed batch has no room for beams
        dims[BATCH_DIM] = DimRange(form.batch, form.batch, form.batch)
        for model in graphs.values():
            fix_batch(model, form.batch)
    written = dict(graphs)
    if form.head is Head.LOGITS:
        add_beam_step(written)
    specs = save_graphs(written, _make_folder(folder / FLOAT_VARIANT), FLOAT_VARIANT, dims)
    variant = Variant(
        precision=Precision(encoder=FLOAT_VARIANT, decoder=FLOAT_VARIANT),
        opset=form.opset,
        encoder=specs[GraphRole.ENCODER],
        step=specs[GraphRole.STEP],
        prefill=specs.get(GraphRole.PREFILL),
        beam_step=specs.get(GraphRole.BEAM_STEP),
    )
    return WrittenGraphs(variant, dims, generation)


def manifest_of(
    job: ExportJob, written: WrittenGraphs, golden: tuple[GoldenSample, ...] = ()
) -> Manifest:
    """Returns the manifest of a bundle without file hashes, which `seal_bundle` adds."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=job.spec.name,
        producer=f"hybrid-deploy {__version__}",
        parameters=sum(p.numel() for p in job.model.parameters()),
        capacity=job.spec.generation.max_length,
        dims=written.dims,
        preprocess=job.spec.preprocess,
        vocabulary=job.spec.vocabulary,
        generation=written.generation,
        variants={FLOAT_VARIANT: written.variant},
        golden=golden,
        files={},
        prompt=job.spec.prompt,
        speech=job.spec.speech,
    )


def write_golden(bundle: Bundle, job: ExportJob) -> tuple[GoldenSample, ...]:
    """Writes the golden files, and decodes each of them with the model itself.

    A job without golden files keeps its example as the only golden sample. A model that is asked in
    words is asked its template's default, or nothing; another one without start tokens continues a
    prompt of one token. The sample records the prompt.

    Returns:
        One golden sample for each file: its path in the bundle, its tokens and its text. A text
        file that belongs to another file has no sample of its own.

    Raises:
        InputError: a file does not fit the job's `preprocess`, or the example holds NaN or
            infinity.
    """
    # graphs of a fixed batch do not run a single golden file, and a state cannot be set back
    drafts = None
    if job.form.batch is None and not has_custom_step(job.model):
        drafts = OnnxRuntimeBackend(bundle, FLOAT_VARIANT, BackendOptions(large_pages=False))
    model = FullRerun(job.model, job.spec.generation.max_length, drafts)
    session = Session(bundle, FLOAT_VARIANT, model)
    prompt = _golden_prompt(session, job)
    folder = _make_folder(bundle.folder / GOLDEN_FOLDER)
    for name, content in job.golden.items():
        (folder / name).write_bytes(content)
    paths = [folder / name for name in job.golden]
    samples = tuple(
        _golden_sample(session, path, prompt)
        for path in paths
        if not is_companion_text(path, job.spec.preprocess)
    )
    return samples or (_example_sample(session, job, folder, prompt),)


def _golden_sample(
    session: Session, path: Path, prompt: tuple[int, ...], max_new_tokens: int | None = None
) -> GoldenSample:
    """Decodes a golden file with the session of the model itself.

    Raises:
        InputError: the file cannot be read, or does not hold one input.
        UnsupportedModelError: the model returns NaN or infinity for it.
    """
    options = None if max_new_tokens is None else GenerateOptions(max_new_tokens=max_new_tokens)
    try:
        (result,), _ = session.run_files([path], prompt=prompt, options=options)
    except InputError as error:  # its path is in a folder that the user does not know
        raise InputError(f"golden sample {str(error).replace(str(path), path.name)}") from error
    except NotFiniteError as error:  # there is no variant yet: the model itself overflows
        raise UnsupportedModelError(
            f"the model returns logits that are not finite for {path.name}, {error.where}; run it "
            "on this input in PyTorch, and mend its weights or the input"
        ) from error
    return GoldenSample(
        file=f"{GOLDEN_FOLDER}/{path.name}",
        tokens=result.tokens,
        text=result.text or "",
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )


def _example_sample(
    session: Session, job: ExportJob, folder: Path, prompt: tuple[int, ...]
) -> GoldenSample:
    """Stores the first row of the example as a golden sample, and decodes it.

    An example is often noise that no end token follows, so the number of tokens is limited.
    """
    example, dynamic = job.example, job.spec.dynamic
    if not _lies_in_ranges(example, dynamic):
        example = resized(example, dynamic, "typical")
    path = folder / EXAMPLE_FILE
    save: Any = np.savez_compressed
    save(path, **{name: value[:1].numpy() for name, value in example.items()})
    generation = job.spec.generation
    room = generation.max_length - len(generation.start_tokens) - len(prompt)
    limit = _EXAMPLE_TOKENS if room > _EXAMPLE_TOKENS else None
    sample = _golden_sample(session, path, prompt, limit)
    return msgspec.structs.replace(sample, is_example=True)


def _lies_in_ranges(example: Mapping[str, Tensor], dynamic: DynamicAxes) -> bool:
    """Returns whether every varying axis of the example has a declared size."""
    return all(
        axis.sizes.min <= example[name].shape[index] <= axis.sizes.max
        for name, axes in dynamic.items()
        for index, axis in axes.items()
        if name in example
    )


def _golden_prompt(session: Session, job: ExportJob) -> tuple[int, ...]:
    """Returns the prompt of the golden samples; empty for a model that its start tokens start."""
    template = job.spec.prompt
    prompt = () if template is None else tuple(session.prompt_tokens(template.default or ""))
    if prompt or job.spec.generation.start_tokens:
        return prompt
    return (_first_ordinary_token(session.bundle, job),)


def _first_ordinary_token(bundle: Bundle, job: ExportJob) -> int:
    """Returns the smallest token id that is neither an end token nor the pad token."""
    special = {*job.spec.generation.end_tokens, job.spec.generation.pad_token}
    outputs = bundle.graph(FLOAT_VARIANT, GraphRole.STEP).outputs
    size = next(int(tensor.shape[-1]) for tensor in outputs if tensor.name == LOGITS)
    return next((token for token in range(size) if token not in special), 0)


def replace_head(job: ExportJob, bundle: Bundle, written: WrittenGraphs) -> WrittenGraphs:
    """Replaces the logits of prefill and step by the job's head, and compares the two.

    Args:
        job: names the head; with `logits` nothing changes.
        bundle: holds the graphs, which return logits.
        written: description of these graphs.

    Returns:
        The description of the graphs after the replacement.

    Raises:
        ParityError: a head returns other tokens than the logits.
    """
    head = job.form.head
    if head is Head.LOGITS:
        return written
    graphs, specs = load_graphs(bundle, FLOAT_VARIANT), {}
    for role in bundle.graphs(FLOAT_VARIANT):
        if role is GraphRole.ENCODER:
            continue
        path = bundle.graph_path(FLOAT_VARIANT, role)
        with_head = path.with_name(f"{role.value}-{head.value}.onnx")
        attach_head(graphs[role], head, TOP_K)
        ir.save(graphs[role], with_head)
        check_head(path, with_head, _random_feeds(bundle, role))
        with_head.replace(path)
        spec = bundle.graph(FLOAT_VARIANT, role)
        described = describe(graphs[role], spec.file)
        specs[role.value] = msgspec.structs.replace(described, cost=spec.cost)
    variant = msgspec.structs.replace(written.variant, head=head, **specs)
    return replace(written, variant=variant)


def _random_feeds(bundle: Bundle, role: GraphRole) -> dict[str, np.ndarray]:
    """Returns inputs of a decoder graph by name: tokens of zeros, true masks, random floats."""
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


def _make_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
