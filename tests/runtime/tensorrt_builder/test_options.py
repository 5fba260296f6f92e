"""The effect of build options on requests and keys; nothing is compiled here."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BuildError, UsageError
from hybrid_deploy.runtime.engines import build
from hybrid_deploy.runtime.engines.build import EngineRecord, build_engine
from hybrid_deploy.runtime.engines.cache import PLAN_FILE, BuiltPlan, EngineCache
from hybrid_deploy.runtime.engines.cache_listing import list_engines
from hybrid_deploy.runtime.host.local_gpu import LocalGpu
from hybrid_deploy.runtime.tensorrt_builder.compile import PlanRequest
from hybrid_deploy.runtime.tensorrt_builder.options import (
    DEFAULT_OPTIONS,
    BuildOptions,
    check_options,
)
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import MessageLog, TensorRT
from hybrid_deploy.target import Flavour, parse_target

ADA = LocalGpu("NVIDIA L4", "8.9")
TURING = LocalGpu("Tesla T4", "7.5")
LATER = BuildOptions(version_compatible=True)
ANYWHERE = BuildOptions(hardware_compatible=True)


class Machine:
    """A machine with a GPU and TensorRT; it records the requests of its builds."""

    def __init__(self, patch: pytest.MonkeyPatch, bundle: Bundle, folder: Path) -> None:
        self._patch = patch
        self._bundle = bundle
        self.cache = EngineCache(folder)
        self.requests: list[PlanRequest] = []
        patch.setattr(build, "compile_isolated", self._compile)
        self.install("10.16.1", ADA)

    @property
    def roles(self) -> list[GraphRole]:
        return list(self._bundle.loop_graphs("fp32"))

    def install(self, version: str, gpu: LocalGpu) -> None:
        """Replaces the version of TensorRT and the GPU."""
        vendor = TensorRT(Flavour.TENSORRT, version, module=None, log=cast(MessageLog, None))
        self._patch.setattr(build, "load_tensorrt", lambda flavour: vendor)
        self._patch.setattr(build, "local_gpu", lambda: gpu)

    def build(
        self,
        options: BuildOptions = DEFAULT_OPTIONS,
        role: GraphRole = GraphRole.STEP,
    ) -> EngineRecord:
        local = parse_target("local")
        return build_engine(self._bundle, "fp32", role, local, cache=self.cache, options=options)

    def _compile(self, request: PlanRequest) -> BuiltPlan:
        self.requests.append(request)
        return BuiltPlan(b"plan", 2.5)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tiny_bundle, tmp_path)


@pytest.mark.parametrize("options", [LATER, ANYWHERE, BuildOptions(workspace_bytes=1000)], ids=repr)
def test_request_and_key_depend_on_the_option(machine: Machine, options: BuildOptions) -> None:
    assert machine.build(options).key != machine.build().key
    assert [request.options for request in machine.requests] == [options, BuildOptions()]


def test_key_ignores_the_time_limit(machine: Machine) -> None:
    first = machine.build()
    assert machine.build(BuildOptions(timeout_s=5)).key == first.key
    assert len(machine.requests) == 1


def test_requests_of_decoder_graphs_have_the_capacity(machine: Machine) -> None:
    for role in machine.roles:
        machine.build(role=role)
    assert [request.capacity for request in machine.requests] == [None, 8, 8]


def test_timing_cache_lies_beside_the_engines(machine: Machine) -> None:
    machine.build()
    (request,) = machine.requests
    assert request.timing_cache == str(machine.cache.folder / "timing-10.16.1-NVIDIA-L4-8.9.cache")


def test_hardware_compatible_engine_serves_other_gpus(machine: Machine) -> None:
    built = machine.build(ANYWHERE)
    machine.install("10.16.1", LocalGpu("NVIDIA L40", "8.9"))
    assert machine.build(ANYWHERE).path == built.path
    machine.install("10.16.1", TURING)
    with pytest.raises(UsageError) as caught:
        machine.build(ANYWHERE)
    assert str(caught.value) == (
        "--hardware-compatible begins with Ampere (8.0) and Tesla T4 has 7.5; leave it out"
    )


def test_version_compatible_engine_serves_later_versions(machine: Machine) -> None:
    compatible, plain = machine.build(LATER), machine.build()
    machine.install("11.4.1", ADA)
    assert machine.build(LATER).path == compatible.path
    assert machine.build().path != plain.path
    machine.install("10.15.1", ADA)
    assert machine.build(LATER).path != compatible.path


def test_damaged_compatible_engine_is_not_used(machine: Machine) -> None:
    built = machine.build(LATER)
    (machine.cache.folder / built.key / PLAN_FILE).write_bytes(b"flap")
    machine.install("11.4.1", ADA)
    again = machine.build(LATER)
    assert again.path != built.path
    versions = [e.record and e.record.shaped_by["version"] for e in list_engines(machine.cache)]
    assert sorted(map(str, versions)) == ["10.16.1", "11.4.1"]


def test_graph_that_this_tensorrt_does_not_support_is_not_built(machine: Machine) -> None:
    machine.install("10.3.0", ADA)
    for role in machine.roles:
        with pytest.raises(BuildError, match="export the model with --opset 21"):
            machine.build(role=role)
    assert not machine.requests


def test_options_of_tensorrt_are_checked_without_a_gpu_too() -> None:
    check_options(ANYWHERE, Flavour.TENSORRT, None)
    for options in (ANYWHERE, LATER):
        with pytest.raises(UsageError, match="is an option of TensorRT"):
            check_options(options, Flavour.RTX, None)


def test_request_is_the_same_after_json(machine: Machine) -> None:
    machine.build(BuildOptions(1000, True, True, 5))
    (request,) = machine.requests
    sent = msgspec.json.decode(msgspec.json.encode(request), type=PlanRequest)
    assert sent == request
