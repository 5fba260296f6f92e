"""Opens the GPU of this machine, or raises an error with the reason in one line."""

from __future__ import annotations

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu


def required_gpu(backend: str) -> LocalGpu:
    """Returns the driver's description of the GPU.

    Args:
        backend: name of the backend, for the message.

    Raises:
        BackendError: there is no GPU.
    """
    gpu = local_gpu()
    if gpu is None:
        raise BackendError(
            f"backend {backend} needs an NVIDIA GPU with its driver, and this machine has none; "
            "`hybrid-deploy doctor` prints what is missing, --backend onnxruntime runs on the CPU"
        )
    return gpu


def refuse_approximate_logits(backend: str, bundle: Bundle, variant: str) -> None:
    """Refuses a variant with approximate logits: the loop on a GPU does not run its refine graph.

    Raises:
        UsageError: the variant has a refine graph.
    """
    if bundle.variant(variant).refine is not None:
        raise UsageError(
            f"variant {variant} of {bundle.folder} computes approximate logits and refines them, "
            f"which only a CPU backend does: use --backend onnxruntime, or another variant with "
            f"{backend}"
        )


def open_gpu(backend: str) -> Device:
    """Opens the GPU for the backend of that name.

    Raises:
        MissingDependencyError: cuda-core is not installed.
        BackendError: there is no GPU, or its driver fails.
    """
    required_gpu(backend)
    from hybrid_deploy.runtime.backends.gpu.cuda_device import CudaDevice

    return CudaDevice()
