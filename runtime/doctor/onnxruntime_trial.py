"""Runs a tiny graph in ONNX Runtime, on the CPU or in the CUDA provider."""

from __future__ import annotations

import re

from hybrid_deploy.contract import cache_of, is_next_cache
from hybrid_deploy.errors import BackendError, MissingDependencyError
from hybrid_deploy.runtime.doctor.tiny_graphs import Arrays, TinyGraph

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise MissingDependencyError("onnxruntime", extra="cpu") from error

VERSION = str(ort.__version__)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3
_DEVICES = {CPU: "cpu", CUDA: "cuda"}


class LoadedGraph:
    """A graph in a session of one provider; a call runs it once and writes its caches in place.

    ONNX Runtime uses the CPU without an error if a provider does not load or lacks an operator.
    Both are refused here.

    Raises:
        MissingDependencyError: this ONNX Runtime was built without the provider.
        BackendError: the provider did not load.
    """

    def __init__(self, graph: TinyGraph, provider: str) -> None:
        if provider not in ort.get_available_providers():
            raise MissingDependencyError("onnxruntime-gpu", extra="cuda")
        self._session = _open(graph, provider)
        self._binding, device = self._session.io_binding(), _DEVICES[provider]
        self._inputs = {  # an OrtValue on the CPU borrows its array: both must live on
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
            for name, array in graph.inputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._outputs = [output.name for output in self._session.get_outputs()]
        for name in self._outputs:
            if is_next_cache(name):
                self._binding.bind_ortvalue_output(name, self._inputs[cache_of(name)])
            else:
                self._binding.bind_output(name, device)

    def __call__(self) -> Arrays:
        """Runs the graph once and returns its outputs by name, in new arrays."""
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))


def _open(graph: TinyGraph, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if provider == CUDA:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        ort.preload_dlls()  # CUDA and cuDNN from their packages on PyPI
    session = ort.InferenceSession(str(graph.file), options, providers=[provider])
    if provider not in session.get_providers():
        raise BackendError(f"onnxruntime did not load its {provider}")
    return session


def error_reason(error: Exception) -> str:
    """Returns the message of an error of ONNX Runtime without its codes and paths."""
    newest_opset = re.search(r"support for domain ai\.onnx is till opset (\d+)", str(error))
    if newest_opset is not None:
        return f"it reads ONNX opset {newest_opset[1]} at most"
    noise = r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:"
    return re.sub(noise, "", str(error))
