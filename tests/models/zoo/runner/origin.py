"""What the results of the zoo depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.kept_results import PRODUCT, Origin, origin_of

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx", "transformers")


@dataclass(frozen=True)
class ZooOrigin(Origin):
    """The sources, machine and packages of results of the zoo, and the options of their run.

    Attributes:
        opsets: opsets that the models were exported with.
        tensorrt: whether the step was built for TensorRT.
    """

    opsets: tuple[int, ...]
    tensorrt: bool


def zoo_origin(opsets: Sequence[int], *, tensorrt: bool) -> ZooOrigin:
    """Returns the origin of results that are made here and now."""
    here = origin_of((*PRODUCT, "tests/models"), _PACKAGES)
    return ZooOrigin(here.sources, here.machine, here.packages, tuple(opsets), tensorrt)
