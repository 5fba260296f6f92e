"""A TensorRT engine as an `Engine`.

Loading a plan runs its native code: load only plans that `read_plan` has checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybrid_deploy.errors import BackendError, InputError
from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import TensorRT, last_error
from hybrid_deploy.target import Flavour

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_NOT_CAPTURABLE = "TensorRT reports that this engine cannot be recorded on a stream"


class TensorRTEngine:
    """A loaded engine.

    Attributes:
        name: variant and graph role, for messages, as in "fp32/step".
        vendor: the vendor's module, TensorRT or TensorRT-RTX.
        device: the device that the engine runs on.
        inputs: inputs by name.
        outputs: outputs by name.
        aliases: for each output that the engine writes over an input, the name of that input.
        ranges: smallest and largest shape of every input, from the optimization profile.
        context_bytes: size of the buffers of each context on the GPU.

    Args:
        vendor: the vendor's module.
        plan: content of the plan file.
        name: variant and graph role, for messages.
        device: the device that the engine runs on.
        version_compatible: whether the plan contains a runtime of its own, whose code runs on the
            host.

    Raises:
        BackendError: TensorRT cannot load the plan, or the engine needs a tensor in RAM.
    """

    def __init__(
        self,
        vendor: TensorRT,
        plan: bytes,
        name: str,
        device: Device,
        *,
        version_compatible: bool = False,
    ) -> None:
        self.name = name
        self.vendor = vendor
        self.device = device
        vendor.log.clear()
        self._runtime = vendor.module.Runtime(vendor.log)  # must outlive the engine
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"TensorRT {vendor.version} does not load the engine of {name} on "
                f"{device.name}: {last_error(vendor.log)}"
            )
        self.inputs, self.outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        self.aliases = self._aliases()
        self.context_bytes = int(getattr(self._engine, "device_memory_size_v2", 0))
        self.ranges = {name: self._range(name) for name in self.inputs}

    def context(self) -> TensorRTContext:
        """Returns a new context with its own buffers.

        TensorRT-RTX compiles the kernels for a shape at its first use. The strategy is EAGER: with
        LAZY it would replace kernels later, which a recorded CUDA graph does not notice.

        Raises:
            BackendError: TensorRT makes no context.
        """
        self.vendor.log.clear()
        if self.vendor.flavour is Flavour.RTX:
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = self.vendor.member(
                "DynamicShapesKernelSpecializationStrategy", "EAGER"
            )
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            reason = last_error(self.vendor.log)
            raise BackendError(f"TensorRT made no context for {self.name}: {reason}")
        return TensorRTContext(self, context)

    def _tensors(self, mode: str) -> dict[str, TensorInfo]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {n: self._info(n) for n in names if engine.get_tensor_mode(n).name == mode}

    def _info(self, name: str) -> TensorInfo:
        dtype = self._engine.get_tensor_dtype(name).name
        if self._engine.get_tensor_location(name).name != "DEVICE":
            raise BackendError(
                f"the engine of {self.name} needs {name} in RAM, expected all tensors on the GPU; "
                "build it again: hybrid-deploy build BUNDLE --target local"
            )
        return TensorInfo(_DTYPES.get(dtype, dtype), tuple(self._engine.get_tensor_shape(name)))

    def _aliases(self) -> dict[str, str]:
        """Returns TensorRT's aliases; before 10.15 it has no method for them and makes none."""
        aliased_input = getattr(self._engine, "get_aliased_input_tensor", lambda name: None)
        aliases = {name: aliased_input(name) for name in self.outputs}
        return {name: source for name, source in aliases.items() if source}

    def _range(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if -1 not in (shape := self.inputs[name].shape):
            return shape, shape
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(smallest), tuple(largest)


class TensorRTContext:
    """One execution context of an engine: the shapes and the addresses of its tensors."""

    def __init__(self, engine: TensorRTEngine, context: Any) -> None:
        self._engine = engine  # must outlive the context
        self._log = engine.vendor.log
        self._stream = engine.device.stream
        self._name = engine.name
        self._context = context
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Only the first context of an engine gets the optimization profile by itself.
        has_profile = context.active_optimization_profile == 0
        if not (has_profile or context.set_optimization_profile_async(0, self._stream)):
            raise self._failure("does not share its optimization profile between contexts")

    @property
    def nbytes(self) -> int:
        """Size of the buffers that the context holds on the GPU."""
        return self._engine.context_bytes

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs.

        Raises:
            InputError: a shape is outside the optimization profile.
            BackendError: TensorRT refuses a shape.
        """
        self._log.clear()  # its messages would accumulate
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            self._check_range(name, shape)
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"does not take {name} of shape {_text(shape)}")
            self._shapes[name] = shape

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        smallest, largest = self._engine.ranges[name]
        sizes = zip(shape, smallest, largest, strict=True)
        if not all(low <= size <= high for size, low, high in sizes):
            raise InputError(
                f"the engine of {self._name} takes {name} of {_text(smallest)} to "
                f"{_text(largest)}, got {_text(shape)}; build one for it: hybrid-deploy build "
                "BUNDLE --target local --profile NAME=MIN:TYPICAL:MAX"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an input or output; the shapes of all inputs must be set.

        Raises:
            BackendError: the shape depends on the values of the inputs.
        """
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self._failure(f"does not know the shape of {name} before it runs")
        return shape

    def bind(self, name: str, buffer: Buffer) -> None:
        """Sets the address of a tensor for all later calls of `enqueue`."""
        if self._addresses.get(name) == buffer.address:
            return
        if not self._context.set_tensor_address(name, buffer.address):
            raise self._failure(f"does not take the address of {name}")
        self._addresses[name] = buffer.address

    def enqueue(self) -> None:
        """Enqueues one run on the device's stream."""
        if not self._context.execute_async_v3(self._stream):
            raise self._failure("did not run")

    def capture_obstacle(self) -> str | None:
        """Returns why a run cannot be recorded in a CUDA graph; None if no reason is known."""
        is_capturable = getattr(self._context, "is_stream_capturable", None)
        capturable = is_capturable is None or is_capturable(self._stream)
        return None if capturable else _NOT_CAPTURABLE

    def close(self) -> None:
        """Frees the context's buffers."""
        self._context = None

    def _failure(self, problem: str) -> BackendError:
        return BackendError(f"TensorRT: {self._name} {problem}: {last_error(self._log)}")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
