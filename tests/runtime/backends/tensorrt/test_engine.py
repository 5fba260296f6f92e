"""TensorRT engines over a fake module and a fake device: bindings, shapes and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError, InputError
from hybrid_deploy.runtime.backends.gpu.backend import DeviceBackend
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo
from hybrid_deploy.runtime.backends.gpu.engine_set import load_engine_set
from hybrid_deploy.runtime.backends.tensorrt.engine import TensorRTContext, TensorRTEngine
from hybrid_deploy.runtime.generation.sequences import Limits
from hybrid_deploy.target import Flavour
from tests.fakes.device import FakeDevice
from tests.fakes.engine import CACHE_FORMS, ENCODER_SPEC, CacheForm, Decoder, fake_engines
from tests.fakes.host_decoding import decode_on_device, decode_on_host
from tests.fakes.tensorrt_module import Engine, Log, fake_tensorrt

LIMITS = Limits((), 0, 99, 20)
PROMPTS = [[1], [2, 3, 4]]


def image_of(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(batch, 5)).astype(np.float32)


class Loaded:
    """The engines of a fake decoder, loaded through the fake TensorRT module."""

    def __init__(self, form: CacheForm = "in place", flavour: Flavour = Flavour.RTX) -> None:
        self.log, self.device = Log(), FakeDevice()
        self.decoder = Decoder(form=form)
        self.fakes = fake_engines(self.device, self.decoder)
        aliased = form == "in place"
        self.plans = {
            name.encode(): Engine(fake, self.log, aliased) for name, fake in self.fakes.items()
        }
        self.vendor = fake_tensorrt(self.plans, self.log, flavour)

    def engine(self, name: str) -> TensorRTEngine:
        return TensorRTEngine(self.vendor, name.encode(), f"fp32/{name}", self.device)

    def backend(self) -> DeviceBackend:
        prefill = self.engine("prefill") if "prefill" in self.fakes else None
        engine_set = load_engine_set(
            self.engine("encoder"), self.engine("step"), prefill, self.decoder.capacity
        )
        return DeviceBackend("tensorrt", "1.7", self.device, engine_set, ENCODER_SPEC, 4)


@pytest.mark.parametrize("form", CACHE_FORMS)
@pytest.mark.parametrize("flavour", Flavour)
def test_tokens_are_those_of_the_host(form: CacheForm, flavour: Flavour) -> None:
    loaded, image = Loaded(form, flavour), image_of(2)
    backend = loaded.backend()
    expected = decode_on_host(loaded.decoder, image, PROMPTS, LIMITS)
    for _ in range(2):
        actual = decode_on_device(backend.start({"image": image}), PROMPTS, LIMITS)
        assert [row.tokens for row in actual] == [row.tokens for row in expected]
    assert loaded.device.launches > 0


def test_engine_has_inputs_outputs_and_aliases() -> None:
    engine = Loaded().engine("step")
    assert engine.inputs["self_key_0"] == TensorInfo("float32", (-1, 20, 8))
    assert engine.inputs["token"] == TensorInfo("int64", (-1,))
    assert engine.aliases == {
        "self_key_0_next": "self_key_0",
        "self_value_0_next": "self_value_0",
    }
    assert Loaded("in turn").engine("step").aliases == {}


@pytest.mark.parametrize(("flavour", "eager"), [(Flavour.RTX, True), (Flavour.TENSORRT, False)])
def test_only_tensorrt_rtx_compiles_kernels_eagerly(flavour: Flavour, eager: bool) -> None:
    context = Loaded(flavour=flavour).engine("step").context()
    assert isinstance(context, TensorRTContext)
    assert context._context.eager is eager


def test_engine_that_cannot_be_recorded_is_reported() -> None:
    loaded, image = Loaded(), image_of(1)
    loaded.plans[b"step"].capturable = False
    block = next(loaded.backend().start({"image": image}).step_blocks(np.array([1]), np.array([0])))
    assert block.run == "enqueue"
    assert block.reason == "TensorRT reports that this engine cannot be recorded on a stream"


def test_error_outside_the_optimization_profile_names_range_and_command() -> None:
    backend = Loaded().backend()
    with pytest.raises(InputError) as caught:
        backend.start({"image": image_of(9)})
    assert str(caught.value) == (
        "the engine of fp32/encoder takes image of 1x1 to 8x8, got 9x5; build one for it: "
        "hybrid-deploy build BUNDLE --target local --profile NAME=MIN:TYPICAL:MAX"
    )
    decoding = backend.start({"image": image_of(8)})
    with pytest.raises(InputError, match="takes tokens of 1x1 to 8x8, got 8x9"):
        decoding.prefill(np.ones((8, 9), np.int64), np.zeros(8, np.int64), np.full(8, 8))
    decoding.step(np.ones(8, np.int64), np.zeros(8, np.int64))


def test_later_contexts_of_an_engine_set_the_optimization_profile() -> None:
    loaded = Loaded()
    backend = loaded.backend()
    for batch in (1, 2, 3):  # a context of the step engine for each
        image = image_of(batch)
        actual = decode_on_device(backend.start({"image": image}), [[1]] * batch, LIMITS)
        expected = decode_on_host(loaded.decoder, image, [[1]] * batch, LIMITS)
        assert [row.tokens for row in actual] == [row.tokens for row in expected]
    assert len(loaded.fakes["step"].contexts) == 3


def test_plan_that_does_not_load_is_an_error() -> None:
    loaded = Loaded()
    with pytest.raises(BackendError) as caught:
        TensorRTEngine(loaded.vendor, b"?", "fp32/step", loaded.device)
    assert str(caught.value) == (
        "TensorRT 1.7 does not load the engine of fp32/step on fake: bad plan"
    )


def test_engine_with_a_tensor_in_ram_is_refused() -> None:
    loaded = Loaded()
    loaded.plans[b"step"].host_tensor = "position"
    with pytest.raises(BackendError, match="fp32/step needs position in RAM, expected all tensors"):
        loaded.engine("step")


def test_error_of_a_refused_run_has_the_message_of_tensorrt() -> None:
    loaded, image = Loaded(), image_of(1)
    decoding = loaded.backend().start({"image": image})
    loaded.fakes["step"].refuses_at = 0
    with pytest.raises(BackendError) as caught:
        decoding.step(np.array([1]), np.array([0]))
    assert str(caught.value) == (
        "fake failed in the step graph: TensorRT: fp32/step did not run: refused"
    )


def test_messages_of_tensorrt_do_not_accumulate() -> None:
    loaded, image = Loaded(), image_of(1)
    backend = loaded.backend()
    for _ in range(3):
        backend.start({"image": image})
        loaded.log.warnings.append("using the default stream")
    assert len(loaded.log.warnings) == 1


def test_unknown_shape_of_an_output_is_refused() -> None:
    loaded = Loaded()
    context = loaded.engine("encoder").context()
    context.set_shapes({"image": (2, 5)})
    fake = loaded.fakes["encoder"].contexts[-1]
    fake.shapes["m"] = (2, -1, 8)
    with pytest.raises(BackendError, match="does not know the shape of m before it runs"):
        context.shape("m")
