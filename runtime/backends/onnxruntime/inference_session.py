"""Sessions of ONNX Runtime, and its errors in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.errors import BackendError, InputError, MissingDependencyError

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

Provider = str | tuple[str, dict[str, str]]
"""Name of an execution provider, with its options."""

_ERRORS_ONLY = 3


def make_session(
    path: Path,
    threads: int | None,
    *,
    optimized: bool = True,
    disabled: Sequence[str] = (),
    planned: bool = True,
    spin_us: int | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Opens an ONNX file.

    Where a provider does not load, ONNX Runtime takes the CPU without an error: ask the session.

    Args:
        path: of the file.
        threads: within an operator; None leaves it to ONNX Runtime.
        optimized: whether it may rewrite the graph.
        disabled: graph optimizers to leave out.
        planned: whether memory for all intermediate results is laid out at once. It saves time in
            short calls; in an encoder it saves none, and takes a third more memory.
        spin_us: how long threads wait busily for the next call, in microseconds: it comes sooner to
            its results, and other sessions have a core less meanwhile. None leaves it to ONNX
            Runtime, which takes tens of milliseconds; older versions know 0 and None.
        providers: in the order of preference.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = planned
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if spin_us == 0:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    elif spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        str(path), options, providers=list(providers), disabled_optimizers=list(disabled)
    )


def wrong_optimizers(precision: Precision) -> tuple[str, ...]:
    """Names the optimizers that change what graphs of a precision compute."""
    # takes a zero point of 0 for the smallest number, as of uint8, and removes the Relu before it
    return ("ReluQuantRewrite",) if "fp8" in (precision.encoder, precision.decoder) else ()


def too_old(error: Exception) -> BackendError | None:
    """Recognises that the installed ONNX Runtime does not know the graph's operators yet."""
    known = re.search(r"support for domain ai\.onnx is till opset (\d+)", str(error))
    missing = re.search(r"Could not find an implementation for (\w+)\(\d+\)", str(error))
    opset = 18 if known is not None and int(known[1]) < 21 else 21
    advice = f"upgrade onnxruntime (1.25 or newer), or export with --opset {opset}"
    if known is not None:
        return BackendError(
            f"the graphs use a newer ONNX opset than the {known[1]} that onnxruntime "
            f"{ort.__version__} reads; {advice}"
        )
    if missing is not None:
        return BackendError(
            f"onnxruntime {ort.__version__} has no kernel for {missing[1]}; {advice}"
        )
    return None


@contextmanager
def failures(where: str) -> Iterator[None]:
    """Raises what goes wrong inside as a BackendError that says where it was."""
    try:
        yield
    except (InputError, BackendError, MemoryError):
        raise
    except Exception as error:
        raise BackendError(f"onnxruntime failed in {where}: {error}") from error
