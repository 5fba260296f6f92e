"""Opens sessions of ONNX Runtime, and raises its errors as errors of this package."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.bundle.manifest import Precision
from hybrid_deploy.errors import (
    BackendError,
    BundleError,
    InputError,
    MissingDependencyError,
)
from hybrid_deploy.runtime.backends.onnxruntime.verified_graphs import VerifiedGraph
from hybrid_deploy.runtime.deadline import deadline, stopping_at

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

Provider = str | tuple[str, dict[str, str]]
"""Name of an execution provider, or its name and its options."""

_Result = TypeVar("_Result")

_FATAL_ONLY = 4  # an error's text is in its exception
ort.set_default_logger_severity(_FATAL_ONLY)

_NO_ROW = "indices element out of data bounds"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def make_session(
    graph: Path | VerifiedGraph,
    threads: int | None,
    *,
    optimized: bool = True,
    disabled_optimizers: Sequence[str] = (),
    mem_pattern: bool = True,
    spin_us: int | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Returns a session of a graph.

    If a provider does not load, ONNX Runtime takes the CPU without an error: check the session's
    `get_providers()`.

    Args:
        graph: a verified graph, or the path of an ONNX file that this process wrote itself.
        threads: number of CPU threads of one operator; None leaves the choice to ONNX Runtime.
        optimized: whether ONNX Runtime may rewrite the graph.
        disabled_optimizers: names of the graph optimizers that ONNX Runtime must not use.
        mem_pattern: whether ONNX Runtime allocates all intermediate results as one block. This
            saves time in short calls; in an encoder it saves none, and needs a third more RAM.
        spin_us: time in microseconds that the threads wait for the next call without sleeping. A
            longer time makes calls in quick succession faster, but occupies cores that other
            sessions need. None leaves it to ONNX Runtime, which waits tens of milliseconds; old
            versions of ONNX Runtime support only 0 and None.
        providers: execution providers in the order of preference.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = mem_pattern
    options.log_severity_level = _FATAL_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if spin_us == 0:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    elif spin_us is not None:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(graph, VerifiedGraph):
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.weights_folder))
    with _unicode_path(graph) if isinstance(graph, Path) else nullcontext(graph.model) as model:
        session = ort.InferenceSession(
            model,
            options,
            providers=list(providers),
            disabled_optimizers=list(disabled_optimizers),
        )
    session._model_bytes = None  # kept for a change of the providers, which never comes
    return session


@contextmanager
def _unicode_path(path: Path) -> Iterator[str]:
    """Yields a path that ONNX Runtime takes: it has no name for a folder whose bytes are no UTF-8.

    The folder is then named by its descriptor.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{path.name}"
        finally:
            os.close(folder)
    else:
        yield str(path)


def unsafe_optimizers(precision: Precision) -> tuple[str, ...]:
    """Returns the names of ONNX Runtime's optimizers that change the results of a precision."""
    # It takes zero point 0 for the smallest number, as if for uint8, and removes the Relu before.
    return ("ReluQuantRewrite",) if "fp8" in (precision.encoder, precision.decoder) else ()


def unsupported_operator_error(error: Exception) -> BackendError | None:
    """Returns an error that names the remedy if ONNX Runtime is too old for a graph, else None.

    Args:
        error: what ONNX Runtime raised while it loaded the graph.
    """
    newest_opset = re.search(r"support for domain ai\.onnx is till opset (\d+)", str(error))
    missing = re.search(r"Could not find an implementation for (\w+)\(\d+\)", str(error))
    opset = 18 if newest_opset is not None and int(newest_opset[1]) < 21 else 21
    advice = f"upgrade onnxruntime (1.25 or newer), or export with --opset {opset}"
    if newest_opset is not None:
        return BackendError(
            f"the graphs use a newer ONNX opset than the {newest_opset[1]} that onnxruntime "
            f"{ort.__version__} reads; {advice}"
        )
    if missing is not None:
        return BackendError(
            f"onnxruntime {ort.__version__} has no kernel for {missing[1]}; {advice}"
        )
    return None


def run_in_time(run: Callable[..., _Result]) -> _Result:
    """Returns what a run of ONNX Runtime returns; the run ends at the deadline of this call.

    ONNX Runtime ends it before the next node, also inside of a loop.

    Args:
        run: takes the options of the run; nothing without a deadline.

    Raises:
        StoppedError: the deadline has passed.
    """
    end = deadline()
    if end is None:
        return run()
    options = run_options()
    with stopping_at(end, lambda: setattr(options, "terminate", True)):
        return run(options)


def run_options() -> ort.RunOptions:
    """Returns options of a run that ONNX Runtime does not record as a CUDA graph."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    # -1 means "not recorded"; without the entry, version 1.32 spends 0.05 to 0.2 ms in a search.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


@contextmanager
def backend_errors(where: str) -> Iterator[None]:
    """Raises an exception inside as a BackendError that names the failed graph or action."""
    try:
        yield
    except (InputError, BackendError, BundleError, MemoryError):
        raise
    except Exception as error:
        raise BackendError(f"onnxruntime failed in {where}: {error}") from error


def decoding_error(graph: str, tokens: NDArray[np.int64], error: Exception) -> BackendError:
    """Returns the error of a graph that reads tokens.

    If a table of the graph has no row for a token, the message names the largest token.
    """
    if _NO_ROW not in str(error):
        return BackendError(f"onnxruntime failed in {graph}: {error}")
    return BackendError(
        f"{graph} does not know a token, the largest that it read is {tokens.max()}; give known "
        "tokens with --prompt, or export the bundle again with other start tokens"
    )


@contextmanager
def loading_errors(graph: str) -> Iterator[None]:
    """Raises an exception inside, where a graph is loaded, as a BackendError that names it.

    The message says what to do, also where this ONNX Runtime lacks the opset or an operator.
    """
    with backend_errors(f"loading {graph}"):
        try:
            yield
        except (InputError, BackendError, BundleError, MemoryError):
            raise
        except Exception as error:
            raise unsupported_operator_error(error) or BackendError(
                f"onnxruntime failed in loading {graph}: {error}; export the bundle again, or run "
                "another variant"
            ) from error
