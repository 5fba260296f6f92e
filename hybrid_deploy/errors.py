"""The tree of errors that the toolkit raises, with the exit code of a command that meets one.

HybridDeployError               exit code 1: the work failed
├── UsageError                  exit code 2: the request itself is wrong
│   ├── InputError              an input file or array cannot be used
│   ├── OutputExistsError       the output exists and --force is not given
│   └── MissingDependencyError  a package is not installed; the message names the extra
├── BundleError                 a bundle is damaged, incomplete or of another schema version
├── ExportError                 a model cannot be exported
│   ├── UnsupportedModelError   no step can be derived from the decoder
│   └── ParityError             the exported graphs compute other tokens than the model
├── CalibrationError            samples or scales cannot be used
├── BuildError                  TensorRT refuses a graph, or the build of an engine fails
└── BackendError                a backend fails while it computes
    ├── NotFiniteError          a logit is NaN or infinite
    └── CapacityError           a sequence is longer than the decoder's cache
"""

from __future__ import annotations


class HybridDeployError(Exception):
    """A failure whose message is one line: what was expected, what was given, what to do next.

    Attributes:
        exit_code: exit code of the command line when this error ends a command.
    """

    exit_code = 1


class UsageError(HybridDeployError):
    """The request cannot be carried out as given."""

    exit_code = 2


class InputError(UsageError):
    """An input file or array cannot be used."""


class OutputExistsError(UsageError):
    """The output exists, and the caller did not ask to replace it."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} already exists; give --force to replace it")


class MissingDependencyError(UsageError):
    """A package that this request needs is not installed.

    Attributes:
        package: name of the package.
        extra: extra of hybrid-deploy that installs the package.

    Args:
        otherwise: what to do without the package; None if there is no way.
    """

    def __init__(self, package: str, extra: str, otherwise: str | None = None) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'hybrid-deploy[{extra}]'"
            + ("" if otherwise is None else f", or {otherwise}")
        )
        self.package = package
        self.extra = extra


class BundleError(HybridDeployError):
    """A bundle is damaged, incomplete, or of another schema version."""


class ExportError(HybridDeployError):
    """A model cannot be exported."""


class UnsupportedModelError(ExportError):
    """No step can be derived from the decoder; the message names operator, module and line."""


class ParityError(ExportError):
    """The exported graphs do not compute the tokens that the model computes."""


class CalibrationError(HybridDeployError):
    """Calibration samples or scales cannot be used."""


class BuildError(HybridDeployError):
    """TensorRT refuses a graph, or the build of an engine fails."""


class BackendError(HybridDeployError):
    """A backend fails while it computes."""


class NotFiniteError(BackendError):
    """A logit is NaN or infinite.

    Attributes:
        where: the sequence and the step, as in `sequence 0 at step 3`.
    """

    def __init__(self, where: str) -> None:
        super().__init__(
            f"the logits of {where} are not finite; the variant overflows on this input, use one "
            "of higher precision"
        )
        self.where = where


class CapacityError(BackendError):
    """A sequence is longer than the decoder's cache."""
