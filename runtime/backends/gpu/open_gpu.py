"""Opens the GPU of this machine, or says in one line why it cannot be."""

from __future__ import annotations

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.errors import BackendError, UsageError
from hybrid_deploy.runtime.backends.gpu.device import Device
from hybrid_deploy.runtime.host.local_gpu import LocalGpu, local_gpu


def required_gpu(backend: str) -> LocalGpu:
    """Returns what the driver says of the GPU.

    Raises:
        BackendError: there is none.
    """
    gpu = local_gpu()
    if gpu is None:
        raise BackendError(
            f"backend {backend} needs an NVIDIA GPU with its driver and this machine has none at "
            "hand; `hybrid-deploy doctor` says what is missing, --backend onnxruntime needs none"
        )
    return gpu


def refuse_approximate_logits(backend: str, bundle: Bundle, variant: str) -> None:
    """Refuses a variant whose logits are rough: the loop on a GPU has no graph that refines them.

    Raises:
        UsageError: it is such a one.
    """
    if bundle.variant(variant).refine is not None:
        raise UsageError(
            f"variant {variant} of {bundle.folder} refines rough logits, which only a CPU does: "
            f"take --backend onnxruntime for it, or another variant for {backend}"
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
