"""Every error that a user can meet.

HybridDeployError               exit code 1: the work failed
├── UsageError                  exit code 2: the request itself is wrong
│   ├── InputError              a given file or array cannot be used
│   ├── OutputExistsError       the output is already there
│   └── MissingDependencyError  a package is not installed; names the extra
├── BundleError                 a bundle is missing, damaged or of another schema
├── ExportError                 a model cannot be exported
│   ├── UnsupportedModelError   the decoder cannot be made incremental
│   └── ParityError             the exported graphs differ from the model
├── CalibrationError            samples or scales cannot be used
├── BuildError                  TensorRT refused a graph or a build failed
└── BackendError                a backend failed while running
    └── CapacityError           a sequence outgrew the decoder's cache
"""

from __future__ import annotations


class HybridDeployError(Exception):
    """A failure with a one-line message that says what to do next."""

    exit_code = 1


class UsageError(HybridDeployError):
    """The request cannot be carried out as given."""

    exit_code = 2


class InputError(UsageError):
    """A given file or array cannot be used."""


class OutputExistsError(UsageError):
    """The output is already there and was not to be replaced."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} already exists; give --force to replace it")


class MissingDependencyError(UsageError):
    """A package that this request needs is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'hybrid-deploy[{extra}]'"
        )
        self.package = package
        self.extra = extra


class BundleError(HybridDeployError):
    """A bundle is missing, damaged, or written by another version."""


class ExportError(HybridDeployError):
    """A model cannot be exported."""


class UnsupportedModelError(ExportError):
    """The decoder cannot be made incremental; names the operator, module and source line."""


class ParityError(ExportError):
    """The exported graphs do not compute what the model computes."""


class CalibrationError(HybridDeployError):
    """Calibration samples or scales cannot be used."""


class BuildError(HybridDeployError):
    """TensorRT refused a graph, or a build failed."""


class BackendError(HybridDeployError):
    """A backend failed while running."""


class CapacityError(BackendError):
    """A sequence outgrew the decoder's cache."""
