"""ONNX Runtime with its CUDA provider, in the generation loop of the room gpu."""

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
    unsafe_optimizers,
)
from hybrid_deploy.runtime.backends.onnxruntime.verified_graphs import (
    VerifiedGraph,
    VerifiedGraphs,
)
from hybrid_deploy.runtime.backends.registry import BackendOptions

NAME = "onnxruntime-cuda"
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def load(bundle: Bundle, variant: str, options: BackendOptions) -> DeviceBackend:
    """Loads one variant of a bundle.

    Raises:
        MissingDependencyError: this ONNX Runtime was built without CUDA, or cuda-core is missing.
        BackendError: there is no GPU, or the CUDA provider does not load.
        UsageError: the variant has approximate logits, which only a CPU backend refines.
    """
    device = open_gpu(NAME)
    if _CUDA not in ort.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", extra="cuda")
    ort.preload_dlls()  # loads CUDA and cuDNN from their pip packages
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
    """Loads one variant on an opened device.

    Args:
        device: the opened device.
        bundle: the bundle.
        variant: name of the variant.
        options: how the machine is used; `threads` counts for the operators that run on the CPU.
        device_type: ONNX Runtime's name of the device's type, "cuda"; tests use "cpu".
        steps: number of tokens of a block.

    Raises:
        BackendError: the CUDA provider does not load, or ONNX Runtime cannot load a graph.
        UsageError: the variant has approximate logits, which only a CPU backend refines.
    """
    refuse_approximate_logits(NAME, bundle, variant)
    cuda = _CUDA, {"user_compute_stream": str(device.stream), "use_tf32": "0"}
    providers: list[Provider] = [_CPU] if device_type == "cpu" else [cuda, _CPU]
    disabled = unsafe_optimizers(bundle.variant(variant).precision)
    capacity, specs = bundle.manifest.capacity, bundle.loop_graphs(variant)
    chooser = _open(CHOOSE, str(CHOOSE), options, providers, ())
    engines = {}
    with VerifiedGraphs(bundle, specs).loading(list(specs)) as graphs:
        for role, spec in specs.items():
            path = str(bundle.graph_path(variant, role))
            session = _open(graphs[role], path, options, providers, disabled)
            step_chooser = chooser if role is GraphRole.STEP else None
            engines[role] = OnnxRuntimeEngine(session, spec, device_type, step_chooser, capacity)
    encoder, step = engines[GraphRole.ENCODER], engines[GraphRole.STEP]
    engine_set = load_engine_set(encoder, step, engines.get(GraphRole.PREFILL), capacity)
    version = f"onnxruntime {ort.__version__}"
    return DeviceBackend(NAME, version, device, engine_set, specs[GraphRole.ENCODER], steps)


def _open(
    graph: Path | VerifiedGraph,
    name: str,
    options: BackendOptions,
    providers: Sequence[Provider],
    disabled: Sequence[str],
) -> ort.InferenceSession:
    """Opens a graph; refuses ONNX Runtime's fallback to the CPU if CUDA does not load."""
    try:
        session = make_session(
            graph, options.threads, disabled_optimizers=disabled, providers=providers
        )
    except Exception as error:
        raise BackendError(f"onnxruntime failed in loading {name}: {error}") from error
    if providers[0] != _CPU and _CUDA not in session.get_providers():
        raise BackendError(
            "onnxruntime did not load its CUDA provider; install the CUDA and cuDNN that it was "
            f"built for: pip install 'onnxruntime-gpu[cuda,cudnn]=={ort.__version__}'"
        )
    return session
