"""Builds a tiny graph with TensorRT or TensorRT-RTX, and runs it where there is a GPU."""

from __future__ import annotations

import numpy as np

from hybrid_deploy.contract import cache_of, is_next_cache
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.doctor.tiny_graphs import Arrays, TinyGraph
from hybrid_deploy.runtime.host.cuda_driver import CudaDriver
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest, compile_plan
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, last_error


def build(graph: TinyGraph, target: str) -> bytes:
    """Returns the plan of a graph, compiled as `hybrid-deploy build` does.

    Args:
        graph: the graph.
        target: name of the target, such as `local`.

    Raises:
        BuildError: TensorRT refused the graph.
    """
    return compile_plan(PlanRequest(graph.name, str(graph.file), target, {}))


class LoadedPlan:
    """A plan on the GPU; a call runs it once and writes its caches in place.

    Raises:
        BackendError: there is no GPU, or TensorRT cannot load the plan on it.
    """

    def __init__(self, vendor: TensorRT, plan: bytes, graph: TinyGraph) -> None:
        self._log = vendor.log
        self._cuda = CudaDriver()
        self._stream = self._cuda.make_current()
        self._runtime = vendor.module.Runtime(vendor.log)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)  # must outlive the context
        if self._engine is None:
            raise BackendError(f"TensorRT does not load its own plan: {last_error(self._log)}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"TensorRT made no execution context: {last_error(self._log)}")
        self._addresses = {name: self._cuda.upload(array) for name, array in graph.inputs.items()}
        self._results = {
            name: np.zeros(array.shape, np.float32) for name, array in graph.expected.items()
        }
        for name, array in self._results.items():
            if is_next_cache(name):
                self._addresses[name] = self._addresses[cache_of(name)]
            else:
                self._addresses[name] = self._cuda.upload(array)
        for name, address in self._addresses.items():
            self._context.set_tensor_address(name, address)

    def __call__(self) -> Arrays:
        """Runs the plan once and returns its outputs by name; the next run overwrites them."""
        if not self._context.execute_async_v3(self._stream):
            raise BackendError(f"TensorRT did not run the plan: {last_error(self._log)}")
        self._cuda.wait(self._stream)
        for name, array in self._results.items():
            self._cuda.download(self._addresses[name], array)
        return self._results
