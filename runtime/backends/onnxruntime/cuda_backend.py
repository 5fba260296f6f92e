"""ONNX Runtime's CUDA provider under the loop that stays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid_deploy.errors import BackendError, MissingDependencyError

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingDependencyError("onnxruntime-gpu", extra="cuda") from error

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.runtime.backends.gpu.backend import STEPS, DeviceBackend
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.backends.gpu.engine_set import load_engine_set
from hybrid_deploy.runtime.backends.gpu.open_gpu import open_gpu, refuse_approximate_logits
from hybrid_deploy.runtime.backends.onnxruntime.cuda_engine import CHOOSE, OnnxRuntimeEngine
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    Provider,
    make_session,
    wrong_optimizers,
)
from hybrid_deploy.runtime.backends.registry import BackendOptions

NAME = "onnxruntime-cuda"
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def load(bundle: Bundle, variant: str, options: BackendOptions) -> DeviceBackend:
    """Loads one variant of a bundle.

    Raises:
        MissingDependencyError: this ONNX Runtime was built without CUDA, or there is no cuda-core.
        BackendError: there is no GPU, or the provider does not load.
        UsageError: the variant is for a CPU.
    """
    device = open_gpu(NAME)
    if _CUDA not in ort.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", extra="cuda")
    ort.preload_dlls()  # CUDA and cuDNN of pip's own packages
    return load_on(device, bundle, variant, options)


def load_on(
    device: Device,
    bundle: Bundle,
    variant: str,
    options: BackendOptions,
    *,
    device_type: str = "cuda",
    steps: int = STEPS,
) -> DeviceBackend:
    """Loads one variant on an opened device, which is of ONNX Runtime's type `device_type`."""
    refuse_approximate_logits(NAME, bundle, variant)
    cuda = _CUDA, {"user_compute_stream": str(device.stream), "use_tf32": "0"}
    providers: list[Provider] = [_CPU] if device_type == "cpu" else [cuda, _CPU]
    disabled = wrong_optimizers(bundle.variant(variant).precision)
    capacity, specs = bundle.manifest.capacity, bundle.loop_graphs(variant)
    choose = _open(CHOOSE, options, providers, ())
    engines = {}
    for role, spec in specs.items():
        session = _open(bundle.graph_path(variant, role), options, providers, disabled)
        chooser = choose if role is GraphRole.STEP else None
        engines[role] = OnnxRuntimeEngine(session, spec, device_type, chooser, capacity)
    encoder, step = engines[GraphRole.ENCODER], engines[GraphRole.STEP]
    graphs = load_engine_set(encoder, step, engines.get(GraphRole.PREFILL), capacity)
    version = f"onnxruntime {ort.__version__}"
    return DeviceBackend(NAME, version, device, graphs, specs[GraphRole.ENCODER], steps)


def _open(
    path: Path, options: BackendOptions, providers: Sequence[Provider], disabled: Sequence[str]
) -> ort.InferenceSession:
    """Opens a graph; where the wanted provider does not load, ONNX Runtime would take the CPU."""
    try:
        session = make_session(path, options.threads, disabled=disabled, providers=providers)
    except Exception as error:
        raise BackendError(f"onnxruntime failed in loading {path}: {error}") from error
    if providers[0] != _CPU and _CUDA not in session.get_providers():
        raise BackendError(
            "onnxruntime did not load its CUDA provider; install the CUDA and cuDNN that it was "
            f"built for: pip install 'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}'"
        )
    return session
