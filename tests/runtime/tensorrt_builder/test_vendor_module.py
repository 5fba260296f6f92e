"""Loads TensorRT modules, looks up enum members and shortens messages."""

from __future__ import annotations

import importlib.util

import pytest

from hybrid_deploy.errors import BuildError, MissingDependencyError
from hybrid_deploy.runtime.tensorrt_builder import vendor_module
from hybrid_deploy.runtime.tensorrt_builder.vendor_module import load_tensorrt, one_line
from hybrid_deploy.target import Flavour

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")


def test_missing_tensorrt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vendor_module._MODULES, Flavour.TENSORRT, "tensorrt_that_is_not_there")
    # Not `cache_clear`, which would free the logger that TensorRT still uses.
    monkeypatch.setattr(vendor_module, "_load", vendor_module._load.__wrapped__)
    with pytest.raises(MissingDependencyError) as caught:
        load_tensorrt(Flavour.TENSORRT)
    assert str(caught.value) == (
        "tensorrt is not installed; install it with: pip install 'hybrid-deploy[tensorrt]'"
    )


@pytest.mark.trt
@needs_rtx
def test_without_a_flavour_the_installed_one_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vendor_module._MODULES, Flavour.TENSORRT, "tensorrt_that_is_not_there")
    assert load_tensorrt(None).flavour is Flavour.RTX


@pytest.mark.trt
@needs_rtx
def test_missing_enum_member_names_the_version() -> None:
    vendor = load_tensorrt(Flavour.RTX)
    with pytest.raises(BuildError) as caught:
        vendor.member("ComputeCapability", "SM999")
    assert str(caught.value) == (
        f"tensorrt-rtx {vendor.version} has no ComputeCapability SM999; install a newer one"
    )


def test_message_loses_its_source_locations_and_length() -> None:
    message = (
        "IBuilder::buildSerializedNetwork: Error Code 3: API Usage Error (TensorScatter_0: The "
        "output must be\na network output. In validate at /_src/optimizer/layers/kv.cpp:124)"
    )
    assert one_line(message) == (
        "API Usage Error (TensorScatter_0: The output must be a network output.)"
    )
    assert len(one_line("x" * 1000)) == 320
