"""The whole way from a torch model to a bundle: trace, analyse, lower, check, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from hybrid_deploy import __version__
from hybrid_deploy.bundle import Bundle, seal_bundle, staged_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.export.binding import analyse
from hybrid_deploy.export.capture import capture_decoder
from hybrid_deploy.export.dims import DynamicAxes, dim_ranges, memory_axes
from hybrid_deploy.export.graphs import lower
from hybrid_deploy.export.model import DecodePart, check_causal, check_model, reference_memory
from hybrid_deploy.export.parity import Inputs, Parity, check_parity, check_prompts
from hybrid_deploy.export.plan import Plan
from hybrid_deploy.manifest import (
    SCHEMA_VERSION,
    ArrayInput,
    GenerationDefaults,
    GoldenSample,
    GraphSpec,
    ImageInput,
    Manifest,
    Precision,
    Variant,
    Vocabulary,
)
from hybrid_deploy.onnx_files import save_graphs
from hybrid_deploy.runtime.backend import DEFAULT_BACKEND, Options, load_backend
from hybrid_deploy.runtime.preprocess import prepare
from hybrid_deploy.runtime.text import text_of

FLOAT = "fp32"
OPSET = 24
STAGES = ("trace", "analyse", "lower", "check", "write")


@dataclass(frozen=True)
class ModelSpec:
    """What a bundle says of its model besides the graphs.

    Attributes:
        name: what the model is called.
        generation: how decoding starts and ends; `max_length` becomes the caches' capacity.
        preprocess: how a file becomes the encoder's input.
        vocabulary: what the tokens mean, if they are text.
        dynamic: for each encoder input, its varying axes besides the batch.
        max_batch: largest batch that engines are built for.
    """

    name: str
    generation: GenerationDefaults
    preprocess: ImageInput | ArrayInput
    vocabulary: Vocabulary | None = None
    dynamic: DynamicAxes = field(default_factory=dict)
    max_batch: int = 8


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: the bundle.
        parity: how the graphs compare with the model.
        stage_seconds: time of each stage.
    """

    path: Path
    parity: Parity
    stage_seconds: Mapping[str, float]


@dataclass(frozen=True)
class ExportJob:
    """Everything that an export needs.

    Attributes:
        model: has `encode(*inputs) -> memory` (batch first) and the full-sequence
            `decode(tokens, *memory) -> logits`; in eval mode.
        example: encoder inputs by name, in the order of `encode`; any batch size.
        spec: what the bundle says of the model.
        checks: batches of encoder inputs that the model and the graphs both decode.
        golden: files (name to content) that go into the bundle with what the model makes of them.
    """

    model: nn.Module
    example: Mapping[str, Tensor]
    spec: ModelSpec
    checks: Sequence[Inputs] = ()
    golden: Mapping[str, bytes] = field(default_factory=dict)


def export_model(
    job: ExportJob,
    out: str | Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    checked: Callable[[int], None] | None = None,
) -> ExportReport:
    """Exports a trained model into a bundle that decodes one token at a time.

    Args:
        job: the model, and what goes with it.
        out: the bundle's folder.
        force: replace an existing bundle.
        progress: told the name of every stage when it begins.
        checked: told how many inputs were compared, batch by batch.

    Raises:
        UnsupportedModelError: the model cannot be decoded incrementally.
        ParityError: the graphs differ from the model.
        OutputExistsError: `out` exists and `force` is not given.
    """
    model, spec = job.model, job.spec
    check_model(model)
    stages = _Stages(progress)
    with staged_bundle(Path(out), force=force) as folder:
        stages.begin("trace")
        inputs = {name: _pair(value) for name, value in job.example.items()}
        capacity = spec.generation.max_length
        memory = reference_memory(model, tuple(inputs.values()))
        check_causal(model, memory, capacity)
        capture = capture_decoder(
            DecodePart(model), memory, memory_axes(model, inputs, spec.dynamic), capacity
        )
        stages.begin("analyse")
        plan = analyse(capture)
        stages.begin("lower")
        graphs = lower(model, plan, inputs, spec.dynamic, OPSET)
        specs = save_graphs(graphs, _made(folder / FLOAT), FLOAT)
        manifest = _describe(job, plan, inputs, specs)
        stages.begin("check")
        staged = Bundle(folder, manifest)
        parity = _check(job, staged, inputs, int(capture.logits.meta["val"].shape[-1]), checked)
        stages.begin("write")
        samples = _write_golden(staged, job.golden, model)
        seal_bundle(folder, msgspec.structs.replace(manifest, golden=samples))
    return ExportReport(path=Path(out), parity=parity, stage_seconds=stages.finish())


class _Stages:
    """Names the stages as they begin, and times them."""

    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self._progress = progress
        self._marks: list[tuple[str, float]] = []

    def begin(self, stage: str) -> None:
        self._marks.append((stage, time.perf_counter()))
        if self._progress is not None:
            self._progress(stage)

    def finish(self) -> dict[str, float]:
        ends = [mark for _, mark in self._marks[1:]] + [time.perf_counter()]
        return {stage: end - begin for (stage, begin), end in zip(self._marks, ends, strict=True)}


def _describe(
    job: ExportJob, plan: Plan, inputs: Mapping[str, Tensor], graphs: Mapping[GraphRole, GraphSpec]
) -> Manifest:
    spec = job.spec
    variant = Variant(
        precision=Precision(encoder=FLOAT, decoder=FLOAT),
        opset=OPSET,
        encoder=graphs[GraphRole.ENCODER],
        prefill=graphs[GraphRole.PREFILL],
        step=graphs[GraphRole.STEP],
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=spec.name,
        producer=f"hybrid-deploy {__version__}",
        parameters=sum(p.numel() for p in job.model.parameters()),
        capacity=spec.generation.max_length,
        dims=dim_ranges(job.model, plan, inputs, spec.dynamic, spec.generation, spec.max_batch),
        preprocess=spec.preprocess,
        vocabulary=spec.vocabulary,
        generation=spec.generation,
        variants={FLOAT: variant},
        golden=(),
        files={},
    )


def _check(
    job: ExportJob,
    bundle: Bundle,
    inputs: Mapping[str, Tensor],
    vocabulary_size: int,
    checked: Callable[[int], None] | None,
) -> Parity:
    """Runs the parity gate: random prompts on the example, then every input of the job."""
    backend = load_backend(DEFAULT_BACKEND, bundle, FLOAT, Options())
    arrays = {name: value.numpy() for name, value in inputs.items()}
    generation = job.spec.generation
    prompts = check_prompts(job.model, backend, generation, arrays, vocabulary_size)
    parity = check_parity(job.model, backend, generation, job.checks, checked)
    parity.largest_difference = max(parity.largest_difference, prompts.largest_difference)
    return parity


def _pair(value: Tensor) -> Tensor:
    """Gives two examples: tracing takes a batch of one for a constant."""
    return torch.cat([value, value])[:2].contiguous()


def _write_golden(
    bundle: Bundle, files: Mapping[str, bytes], model: nn.Module
) -> tuple[GoldenSample, ...]:
    """Writes the golden files with what the model itself makes of each."""
    manifest, samples = bundle.manifest, []
    for name, content in files.items():
        path = _made(bundle.folder / "golden") / name
        path.write_bytes(content)
        tokens = _greedy(model, prepare([path], manifest.preprocess), manifest.generation)
        text = "" if manifest.vocabulary is None else text_of(tokens, manifest.vocabulary)
        samples.append(GoldenSample(file=f"golden/{name}", tokens=tokens, text=text))
    return tuple(samples)


@torch.no_grad()
def _greedy(
    model: nn.Module, inputs: Mapping[str, Any], generation: GenerationDefaults
) -> tuple[int, ...]:
    memory = reference_memory(model, tuple(torch.from_numpy(a) for a in inputs.values()))
    tokens = list(generation.start_tokens)
    while len(tokens) < generation.max_length and tokens[-1] != generation.end_token:
        logits = model.decode(torch.tensor([tokens]), *memory)  # type: ignore[operator]
        tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens[len(generation.start_tokens) :])


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
