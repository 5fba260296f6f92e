"""Checks one case: exports it, compares it with its module, measures it, builds it for TensorRT."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError, HybridDeployError, UnsupportedModelError
from hybrid_deploy.export.exporter import export_model
from hybrid_deploy.onnx_graphs.files import load_graphs
from hybrid_deploy.runtime.backends.registry import (
    BackendOptions,
    load_backend,
)
from hybrid_deploy.target import parse_target
from tests.models.zoo.captioner import VOCABULARY
from tests.models.zoo.case import Case, random_tokens
from tests.models.zoo.reference import (
    GREEDY_TOKENS,
    LEAST_DISTINCT,
    LEAST_EFFECT,
    Comparison,
    compare,
    effect_of_memory,
    encoded,
    rerun,
    scenarios,
)
from tests.models.zoo.refusal import Refusal

NEWEST_OPSET = 24
TARGET = "rtx:sm_86"
REFUSED, AS_LISTED = "refused", "refused as listed"
_VARIANT = "fp32"
_ROOT = Path(__file__).parents[3]
_STEP_RUNS, _RERUN_RUNS = 100, 15


@dataclasses.dataclass
class Result:
    """The results of one case; None for values that were not measured.

    Attributes:
        name: name of the case.
        family: family of the case.
        verdict: `ok`, AS_LISTED, or the reason why the case fails.
        largest_difference: largest absolute difference of any logit.
        identical: number of greedy tokens that equal the module's.
        tokens: number of tokens decoded.
        step_ms: median time of one step at GREEDY_TOKENS tokens in ms, on one thread.
        rerun_ms: median time of the module's run over GREEDY_TOKENS tokens in ms, on one thread.
        nodes: number of nodes in the step graph.
        export_seconds: time of the export with the newest opset in seconds.
        older: by older opset, the largest difference, or the reason why the case fails.
        tensorrt: `builds`, or the reason why TensorRT does not build the step.
        words: message of the refusal of a model that must be refused.
        seconds: time of the whole check in seconds.
    """

    name: str
    family: str
    verdict: str = "ok"
    largest_difference: float | None = None
    identical: int | None = None
    tokens: int | None = None
    step_ms: float | None = None
    rerun_ms: float | None = None
    nodes: int | None = None
    export_seconds: float | None = None
    older: dict[int, str] = dataclasses.field(default_factory=dict)
    tensorrt: str | None = None
    words: str | None = None
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return self.verdict in ("ok", AS_LISTED)

    @property
    def refused(self) -> bool:
        """Whether this is a model that must be refused."""
        return self.family == REFUSED


def export(case: Case, model: nn.Module, out: Path, opset: int = NEWEST_OPSET) -> Bundle:
    """Exports the model of a case, and returns its bundle.

    Raises:
        HybridDeployError: the exporter or its parity gate refuses the model.
    """
    export_model(
        model,
        case.inputs(2, case.sizes[0]),
        out,
        max_length=case.max_length,
        start_tokens=1,
        dynamic={
            name: {axis: (dim, small, large) for axis, dim, small, large in axes}
            for name, axes in case.dynamic.items()
        },
        opset=opset,
        name=case.name,
    )
    return open_bundle(out)


def check(
    case: Case,
    *,
    opsets: tuple[int, ...] = (NEWEST_OPSET,),
    tensorrt: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
) -> Result:
    """Checks one case; an error becomes its verdict."""
    result = Result(case.name, case.family)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        with _verdict(result):
            model = case.model()
            progress("module")
            check_case(case, model)
            progress("export")
            began = time.perf_counter()
            bundle = export(case, model, Path(folder, "bundle"))
            result.export_seconds = time.perf_counter() - began
            progress("compare")
            _fill(result, compare_bundle(case, model, bundle))
            result.nodes = len(load_graphs(bundle, _VARIANT)[GraphRole.STEP].graph)
            progress("measure")
            result.step_ms, result.rerun_ms = measure(case, model, bundle)
            for opset in opsets:
                if opset != NEWEST_OPSET:
                    progress(f"opset {opset}")
                    out = Path(folder, f"opset{opset}")
                    result.older[opset] = _older(case, model, out, opset)
            if tensorrt:
                progress("tensorrt")
                result.tensorrt = build_step(bundle, Path(folder, "engines"))
    return result


def check_refusal(refusal: Refusal) -> Result:
    """Checks that the exporter refuses a model, with the words that the model lists."""
    result = Result(refusal.name, REFUSED, verdict="exports, but must be refused")
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder, _verdict(result):
        try:
            export(refusal.case, refusal.case.model(), Path(folder, "bundle"))
        except UnsupportedModelError as error:
            result.words = str(error).replace(f"{_ROOT}/", "")
            missing = refusal.missing(result.words)
            result.verdict = AS_LISTED if missing is None else f"the refusal lacks {missing!r}"
    return result


def check_case(case: Case, model: nn.Module) -> None:
    """Checks that the memory of a case has an effect on its logits.

    Raises:
        ValueError: different inputs return the same logits.
    """
    effect = effect_of_memory(case, model)
    if not effect > LEAST_EFFECT:
        raise ValueError(f"the case proves nothing: the memory moves no logit more than {effect}")


def compare_bundle(
    case: Case, model: nn.Module, bundle: Bundle, *, chosen: int | None = None
) -> Comparison:
    """Compares ONNX Runtime with the module in the last `chosen` scenarios; None takes all."""
    backend = load_backend("onnxruntime", bundle, _VARIANT, BackendOptions(threads=1))
    picked = scenarios(case) if chosen is None else scenarios(case)[-chosen:]
    return compare(case, model, backend.start, picked)


def measure(case: Case, model: nn.Module, bundle: Bundle) -> tuple[float, float]:
    """Returns the times in ms of one step and of one full re-run, at GREEDY_TOKENS tokens."""
    inputs = case.inputs(1, case.sizes[0])
    tokens = random_tokens(VOCABULARY, 1, GREEDY_TOKENS)
    backend = load_backend("onnxruntime", bundle, _VARIANT, BackendOptions(threads=1))
    decoding = backend.start({name: value.numpy() for name, value in inputs.items()})
    position = np.array([GREEDY_TOKENS - 1])
    decoding.prefill(tokens.numpy(), np.array([0]), position)
    newest = tokens[:, -1].numpy()
    memory = encoded(model, inputs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return (
            _median_ms(lambda: decoding.step(newest, position), _STEP_RUNS),
            _median_ms(lambda: rerun(model, tokens, memory), _RERUN_RUNS),
        )
    finally:
        torch.set_num_threads(threads)


def build_step(bundle: Bundle, cache: Path) -> str:
    """Builds the step in float16 for one GPU; returns `builds` or the reason of the failure."""
    from hybrid_deploy.calibration.quantize import quantize_bundle
    from hybrid_deploy.runtime.engines.build import build_engine
    from hybrid_deploy.runtime.engines.cache import EngineCache

    try:
        half = quantize_bundle(bundle.folder, "fp16").bundle
    except HybridDeployError as error:
        return f"no fp16: {error}"
    try:
        build_engine(half, "fp16", GraphRole.STEP, parse_target(TARGET), cache=EngineCache(cache))
    except BuildError as error:
        return str(error)
    return "builds"


def _older(case: Case, model: nn.Module, out: Path, opset: int) -> str:
    """Returns the largest difference with an older opset, or the reason of the failure."""
    try:
        comparison = compare_bundle(case, model, export(case, model, out, opset), chosen=1)
    except Exception as error:
        return _reason(error)
    return f"{comparison.largest_difference:.1e}" if comparison.passed else _fault(comparison)


def _fill(result: Result, comparison: Comparison) -> None:
    """Copies a comparison to the result of its case."""
    result.largest_difference = comparison.largest_difference
    result.identical, result.tokens = comparison.identical, comparison.tokens
    if not comparison.passed:
        result.verdict = _fault(comparison)
    elif comparison.distinct < LEAST_DISTINCT:
        result.verdict = f"proves little: {comparison.distinct} different tokens"


def _fault(comparison: Comparison) -> str:
    identical = f"{comparison.identical}/{comparison.tokens} tokens identical"
    return f"differs: {identical}, logits by {comparison.largest_difference:.1e}"


@contextmanager
def _verdict(result: Result) -> Iterator[None]:
    """Makes an error the verdict of its case, so that a run over all cases continues."""
    try:
        yield
    except Exception as error:
        result.verdict = _reason(error)


def _reason(error: BaseException) -> str:
    """Returns an error in one line, followed by its first cause if it has one."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    causes = [error]
    while causes[-1].__cause__ is not None and causes[-1].__cause__ not in causes:
        causes.append(causes[-1].__cause__)
    if len(causes) == 1:
        return text
    first = causes[-1]
    return f"{text} <- {type(first).__name__}: {' '.join(str(first).split())}"


def _median_ms(call: Callable[[], object], runs: int) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000
