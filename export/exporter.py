"""Exports a torch model as a bundle: trace, analyse, lower, check, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from torch import Tensor, nn

from hybrid_deploy.bundle.bundle import Bundle, seal_bundle, staged_bundle
from hybrid_deploy.bundle.field_types import Name
from hybrid_deploy.bundle.input_specs import Preprocess
from hybrid_deploy.bundle.manifest import GenerationDefaults, Tokenizer, Vocabulary
from hybrid_deploy.bundle.prompt_template import PromptTemplate
from hybrid_deploy.bundle.prompt_template import prompt_template as prompt_template_of
from hybrid_deploy.bundle.speech.speech_tokens import SpeechTokens
from hybrid_deploy.contract import Head
from hybrid_deploy.errors import UsageError
from hybrid_deploy.export.bundle_writer import (
    WrittenGraphs,
    manifest_of,
    replace_head,
    write_golden,
    write_graphs,
)
from hybrid_deploy.export.export_job import (
    Arrays,
    ExportJob,
    GraphForm,
    InputOptions,
    ModelSpec,
    SimpleAxes,
)
from hybrid_deploy.export.make_job import (
    is_hugging_face,
    make_job,
    padded_to_multiples,
    token_ids,
)
from hybrid_deploy.export.model.example_run import check_example_run
from hybrid_deploy.export.model.failures import one_line_failures
from hybrid_deploy.export.model.fake_quantizers import with_frozen_fake_quantizers
from hybrid_deploy.export.model.interface import as_batch_of_two, check_model, has_custom_step
from hybrid_deploy.export.model.working_sizes import narrowing_remarks, working_sizes
from hybrid_deploy.export.parity.gate import CHECK, check_export, input_count
from hybrid_deploy.export.parity.parity import Parity
from hybrid_deploy.export.parity.repeatable import chance_told_first
from hybrid_deploy.export.pipeline import lower_model
from hybrid_deploy.export.stage_times import StageTimes
from hybrid_deploy.export.trace.kept_tensors import no_traced_tensors_kept
from hybrid_deploy.progress import Progress, silent


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: folder of the bundle.
        parity: counts and largest difference from the comparison of graphs and model.
        stage_seconds: duration of each stage in seconds, by the stage's name.
        remarks: how the bundle differs from what was asked for, a sentence each.
    """

    path: Path
    parity: Parity
    stage_seconds: Mapping[str, float]
    remarks: tuple[str, ...] = ()


def export_model(
    model: nn.Module,
    example_inputs: Arrays | None,
    out: str | Path,
    *,
    max_length: int,
    start_tokens: int | Sequence[int] = (),
    end_tokens: int | Sequence[int] = (),
    pad_token: int = 0,
    preprocess: Preprocess | None = None,
    vocabulary: Vocabulary | Tokenizer | None = None,
    files: Mapping[str, bytes] | None = None,
    prompt_template: str | None = None,
    default_prompt: str | None = None,
    dynamic: SimpleAxes | None = None,
    max_batch: int = 8,
    batch: int | None = None,
    opset: int = 24,
    head: str = "logits",
    checks: Sequence[Arrays] = (),
    golden: Mapping[str, bytes] | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Exports a trained model into a bundle that decodes one token at a time.

    Args:
        model: module in eval mode, with `encode(*inputs) -> memory` (a tensor or several, batch
            first) and the full-sequence `decode(tokens, *memory) -> logits (batch, length,
            vocabulary)`; or with `initial_state(*memory) -> state` and `step(token (batch,),
            state, *memory) -> logits (batch, vocabulary), state` in place of `decode`; or a
            Hugging Face encoder-decoder model.
        example_inputs: inputs of `encode`: one tensor, several in the order of its parameters,
            or by name; None makes them from the config of a Hugging Face model. A language model
            of Hugging Face that reads an image or a sound before the text also takes the text
            before it from the example: `input_ids` as its processor makes them.
        out: folder of the bundle.
        max_length: largest number of tokens of a sequence, start tokens included; also the
            capacity of the caches.
        start_tokens: token ids that every sequence begins with; if there are none, every run of
            the bundle needs a prompt.
        end_tokens: token ids that end a sequence.
        pad_token: token id that the step reads for a finished sequence of a batch.
        preprocess: steps that turn a file into the encoder's input; None reads arrays (`.npy`,
            `.npz`).
        vocabulary: text of each token, or a tokenizer; None if the tokens are no text.
        files: additional files of the bundle, by name, such as the `tokenizer.json` that
            `vocabulary` names.
        prompt_template: text around the words that the decoder continues, such as
            `Question: {prompt} Answer:`; needs a tokenizer.
        default_prompt: words of a run that gives none.
        dynamic: varying axes besides the batch, each with its name, smallest and largest size:
            `{"image": {3: ("width", 32, 512)}}`.
        max_batch: largest batch size that TensorRT engines are built for.
        batch: fixed batch size of all graphs; None leaves it variable.
        opset: version of the ONNX operator set: 24, 21 or 18.
        head: output of prefill and step: `logits`, or `argmax` or `topk`, which the graph
            computes from them.
        checks: batches of inputs that the parity gate decodes with the model and the graphs; it
            always compares random prompts on the example.
        golden: contents of sample files for `verify`, by name; the bundle stores them with their
            tokens. Without any, it stores the first row of the example.
        name: name of the model; None takes the name of its class.
        force: whether to replace an existing bundle.
        progress: called when a stage begins and ends, and in stage `CHECK` with the number of
            inputs compared.

    Returns:
        The path of the bundle, the result of the parity gate and the time of each stage.

    Raises:
        UsageError: an argument does not fit the model or another argument.
        UnsupportedModelError: the model cannot be decoded incrementally, or its code fails.
        ExportError: an operator has no translation to ONNX, or PyTorch or an ONNX package fails.
        ParityError: the graphs differ from the model.
        OutputExistsError: `out` exists and `force` is not given.
    """
    generation = GenerationDefaults(
        start_tokens=token_ids(start_tokens),
        end_tokens=token_ids(end_tokens),
        pad_token=pad_token,
        max_length=max_length,
    )
    with one_line_failures():
        job = make_job(
            model,
            example_inputs,
            generation,
            InputOptions(preprocess, dynamic or {}, max_batch),
            vocabulary=vocabulary,
            files=files,
            prompt=prompt_template_of(prompt_template, default_prompt),
            form=GraphForm(opset=opset, head=head_of(head), batch=batch),
            checks=checks,
            golden=golden,
            name=name,
        )
    return run_export(job, out, force=force, progress=progress)


def run_export(
    job: ExportJob,
    out: str | Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Exports the model of a job as a bundle.

    Args:
        job: the model, its example and its description.
        out: folder of the bundle.
        force: whether to replace an existing bundle.
        progress: called when a stage begins and ends, and in stage `CHECK` with the number of
            inputs compared.

    Returns:
        The path of the bundle, the result of the parity gate and the time of each stage.

    Raises:
        UnsupportedModelError: the model cannot be decoded incrementally, or its code fails.
        UsageError: a token lies outside the model's vocabulary, or the start tokens fill
            `max_length`.
        InputError: a golden file does not fit the job's `preprocess`, or the example that is kept
            in place of golden files holds NaN or infinity.
        ExportError: an operator has no translation to ONNX, or PyTorch or an ONNX package fails.
        ParityError: the graphs differ from the model.
        OutputExistsError: `out` exists and `force` is not given.
        Exception: whatever `progress` raises passes as it is; no bundle is written.
    """
    raised = list[Exception]()
    with one_line_failures(raised):
        return _checked_export(job, Path(out), force, StageTimes(_noted(progress, raised)))


def _noted(progress: Progress, raised: list[Exception]) -> Progress:
    """Returns a progress that notes the exceptions of the caller's own function."""

    def report(stage: str, done: int, total: int, /) -> None:
        try:
            progress(stage, done, total)
        except Exception as error:
            raised.append(error)
            raise

    return report


def _check_description(spec: ModelSpec) -> None:
    """Checks that what the bundle stores of the model can be read again.

    Raises:
        UsageError: a value is out of its range.
    """
    described = {
        "name": (spec.name, Name),
        "generation": (spec.generation, GenerationDefaults),
        "preprocess": (spec.preprocess, Preprocess),
        "vocabulary": (spec.vocabulary, Vocabulary | Tokenizer | None),
        "prompt": (spec.prompt, PromptTemplate | None),
        "speech": (spec.speech, SpeechTokens | None),
    }
    for label, (value, kind) in described.items():
        try:
            msgspec.json.decode(msgspec.json.encode(value), type=kind)
        except msgspec.ValidationError as error:
            raise UsageError(f"the {label} of the model cannot be stored: {error}") from error


def _check_prompt(job: ExportJob) -> None:
    """Checks that a model that is asked in words has a tokenizer, and its file.

    Raises:
        UsageError: there is no tokenizer, or its file is not among the job's.
    """
    vocabulary = job.spec.vocabulary
    if job.spec.prompt is not None and not isinstance(vocabulary, Tokenizer):
        raise UsageError(
            "a prompt template needs a tokenizer to make tokens of words; describe it with "
            "vocabulary=Tokenizer('tokenizer.json') and files={'tokenizer.json': content}"
        )
    if isinstance(vocabulary, Tokenizer) and vocabulary.file not in job.spec.files:
        raise UsageError(
            f"the tokenizer's file {vocabulary.file} is not among the files of the bundle; give "
            f"its content with files={{{vocabulary.file!r}: content}}"
        )


def _checked_export(job: ExportJob, out: Path, force: bool, stages: StageTimes) -> ExportReport:
    """Exports a job; an exception of the model or of PyTorch passes as it is."""
    check_model(job.model)
    _check_prompt(job)
    job = replace(job, model=with_frozen_fake_quantizers(job.model))
    with staged_bundle(out, force=force) as folder:
        inputs = {name: as_batch_of_two(value) for name, value in job.example.items()}
        check_example_run(job.model, inputs, job.spec.generation.max_length)
        job, remarks = _with_working_sizes(_with_incremental_parts(job), inputs)
        length = job.spec.generation.max_length
        with no_traced_tensors_kept(), chance_told_first(job.model, inputs, length):
            bundle, written, parity = _lowered(job, inputs, folder, stages)
        with stages.timed("write"):
            golden = write_golden(bundle, job)
            written = replace_head(job, bundle, written)
            seal_bundle(folder, manifest_of(job, written, golden))
    return ExportReport(out, parity, stages.seconds, remarks)


def _lowered(
    job: ExportJob, inputs: Mapping[str, Tensor], folder: Path, stages: StageTimes
) -> tuple[Bundle, WrittenGraphs, Parity]:
    """Writes the graphs of a job, and compares them with the model."""
    model = lower_model(job, inputs, stages)
    _check_description(job.spec)
    written = write_graphs(job, model.graphs, model.dims, folder)
    bundle = Bundle(folder, manifest_of(job, written))
    with stages.timed(CHECK, parts=max(1, input_count(job.checks))):
        parity = check_export(job, bundle, model.choice, stages.progress, model.uncertain_sizes)
    return bundle, written, parity


def _with_working_sizes(
    job: ExportJob, inputs: Mapping[str, Tensor]
) -> tuple[ExportJob, tuple[str, ...]]:
    """Returns the job with multiples for sizes between which the model fails, and remarks on them.

    Args:
        job: the model and its varying axes.
        inputs: example inputs of the encoder by name.
    """
    declared = job.spec.dynamic
    narrowed = working_sizes(job.model, inputs, declared)
    preprocess = padded_to_multiples(job.spec.preprocess, narrowed)
    spec = replace(job.spec, dynamic=narrowed, preprocess=preprocess)
    return replace(job, spec=spec), narrowing_remarks(declared, narrowed)


def _with_incremental_parts(job: ExportJob) -> ExportJob:
    """Replaces the Hugging Face models inside a user's own class by incremental copies."""
    if has_custom_step(job.model) or not any(map(is_hugging_face, job.model.modules())):
        return job
    from hybrid_deploy.export.huggingface.adapter import incremental_copy_if_equal

    return replace(job, model=incremental_copy_if_equal(job.model, job.example))


def head_of(name: str) -> Head:
    """Returns the head with the given name.

    Raises:
        UsageError: no head has this name; the message lists the names.
    """
    try:
        return Head(name)
    except ValueError:
        names = ", ".join(head.value for head in Head)
        raise UsageError(f"unknown head {name!r}; choose one of: {names}") from None


__all__ = [
    "ExportReport",
    "export_model",
    "head_of",
    "run_export",
]
