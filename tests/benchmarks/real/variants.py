"""Exports the models and makes their variants with the public commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.contract import FLOAT_VARIANT, GraphRole
from hybrid_deploy.errors import HybridDeployError
from hybrid_deploy.onnx_graphs.files import load_graphs
from tests.benchmarks.quantization_rivals.variants import add_variant, size_bytes
from tests.benchmarks.real.entries import DYNAMIC, VARIANTS

LEAST_TOKENS = 500
"""Number of tokens of real speech that the gate of an export compares at least."""

_ROOT = Path(__file__).parents[3]
_REFUSED = "so it was not written"
_GIVEN_UP = ("--max-drop", "100")
_DYNAMIC_JOB = "tests.benchmarks.quantization_rivals.onnxruntime_job"


@dataclass(frozen=True)
class Made:
    """How the bundle, or a variant of it, came to be.

    Attributes:
        line: what the command said of it.
        refusal: why `quantize` wrote it with a budget of 100 points only; empty if it did not
            refuse it.
        seconds: duration of the command.
    """

    line: str
    refusal: str
    seconds: float


def export(model: Path, bundle: Path, calibration: Path, least_tokens: int, cache: Path) -> Made:
    """Exports a Hugging Face folder; the gate compares the recordings that calibrate.

    Raises:
        HybridDeployError: the command failed, or compared fewer than `least_tokens` of speech.
    """
    options = ["export", str(model), "--samples", str(calibration), "--out", str(bundle), "--force"]
    began = time.perf_counter()
    line = _command("hybrid_deploy", options, cache).strip().splitlines()[-1]
    compared = re.search(r"inputs? \((\d+) token", line)
    tokens = int(compared.group(1)) if compared else 0
    if tokens < least_tokens:
        raise HybridDeployError(
            f"the export compared {tokens} tokens of speech, {least_tokens} at least are asked "
            "for; give a longer first folder"
        )
    return Made(line.removeprefix(f"{bundle}: "), "", time.perf_counter() - began)


def make_variant(bundle: Path, variant: str, calibration: Path, cache: Path) -> Made:
    """Adds a variant to the bundle; one that the accuracy gate refuses is written all the same.

    Raises:
        HybridDeployError: the command failed for another reason.
    """
    began = time.perf_counter()
    options, refusal = VARIANTS[variant], ""
    if variant == DYNAMIC:
        line = _add_dynamic(bundle, cache)
    else:
        assert options is not None, f"the export makes {variant}"
        common = ("quantize", str(bundle), *options, "--name", variant, "--samples")
        command = (*common, str(calibration), "--threads", "1", "--force")
        try:
            line = _command("hybrid_deploy", command, cache)
        except HybridDeployError as error:
            if _REFUSED not in str(error):
                raise
            refusal = str(error)
            line = _command("hybrid_deploy", (*command, *_GIVEN_UP), cache)
    return Made(line.strip(), refusal, time.perf_counter() - began)


def is_there(bundle: Path, variant: str) -> bool:
    """Returns whether a bundle is there and has a variant."""
    try:
        return variant in open_bundle(bundle).manifest.variants
    except (HybridDeployError, msgspec.MsgspecError):
        return False


def decoder_bits(bundle: Path, variant: str) -> float:
    """Returns the mean number of bits that the step graph stores for a weight of float's step.

    Scales and zero points count, and so do tables that a variant keeps in two forms.
    """
    bits = 8 * sum(_step_weights(bundle, variant))
    return bits / (sum(_step_weights(bundle, FLOAT_VARIANT)) / 4)


def size_mb(bundle: Path, variant: str) -> float:
    """Returns the size of a variant's encoder and step with the weights that they read."""
    return size_bytes(open_bundle(bundle), variant) / 1e6


def _step_weights(bundle: Path, variant: str) -> list[int]:
    """Returns the bytes of each constant of a step graph."""
    step = load_graphs(open_bundle(bundle), variant)[GraphRole.STEP]
    constants = (value.const_value for value in step.graph.initializers.values())
    return [constant.nbytes for constant in constants if constant is not None]


def _add_dynamic(bundle: Path, cache: Path) -> str:
    """Adds a variant with ONNX Runtime's dynamic quantization of the encoder's products."""
    opened = open_bundle(bundle)
    folder = cache / "dynamic"
    folder.mkdir(parents=True, exist_ok=True)
    whole, out = folder / "float.onnx", folder / "encoder.onnx"
    onnx.save(onnx.load(opened.graph_path(FLOAT_VARIANT, GraphRole.ENCODER)), whole)
    options = ["--mode", "dynamic", "--per-channel", "--operators", "MatMul"]
    _command(_DYNAMIC_JOB, [str(whole), "-", str(out), *options], cache)
    step = opened.graph_path(FLOAT_VARIANT, GraphRole.STEP)
    precision = Precision(encoder="dynamic", decoder="fp32")
    add_variant(opened, FLOAT_VARIANT, DYNAMIC, precision, out, step, force=True)
    return f"onnxruntime.quantization.quantize_dynamic, {' '.join(options[2:])}"


def _command(module: str, arguments: Sequence[str], cache: Path) -> str:
    """Runs a module in a process of its own and returns its standard output.

    Raises:
        HybridDeployError: it failed; the message is the last line of its standard error.
    """
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "HYBRID_DEPLOY_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise HybridDeployError(f"{arguments[0]}: {lines[-1] if lines else 'it gave no reason'}")
    return done.stdout
