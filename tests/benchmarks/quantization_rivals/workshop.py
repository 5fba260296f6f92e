"""Runs the rivals' jobs on the float graphs and the recorded calibration data."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import HybridDeployError
from tests.benchmarks.quantization_rivals.attempts import Attempt
from tests.benchmarks.quantization_rivals.calls import Call, write_calls

_REPOSITORY = Path(__file__).parents[3]
_LONGEST_S = 3600


class RivalError(HybridDeployError):
    """A rival did not quantize a graph, or changed the names or types of its inputs or outputs."""


class Workshop:
    """Runs each rival's jobs with the Python of that rival's environment.

    Attributes:
        folder: folder of all written files.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        variant: str,
        calls: Mapping[GraphRole, Sequence[Call]],
        pythons: Mapping[str, Path],
    ) -> None:
        """Writes the float graphs, each in one file, and the calls to calibrate with.

        Args:
            folder: existing folder for all written files.
            bundle: bundle of the model.
            variant: name of the float variant.
            calls: recorded calls of each graph.
            pythons: path of each rival's Python, by name of the rival.
        """
        self.folder = folder
        self._pythons = pythons
        self._results: dict[tuple[str, GraphRole, str], Path | RivalError] = {}
        for role in calls:
            onnx.save(onnx.load(bundle.graph_path(variant, role)), self._graph(role))
            write_calls(self._calls(role), calls[role])

    def quantize(self, attempt: Attempt, role: GraphRole) -> Path:
        """Returns the quantized graph of an attempt; the float graph if the attempt has no options.

        A job runs once: the same rival with the same options on the same graph is not run again.

        Raises:
            RivalError: the job failed, in this call or in an earlier one.
        """
        options = {GraphRole.ENCODER: attempt.encoder, GraphRole.STEP: attempt.step}[role]
        if not options:
            return self._graph(role)
        key = (attempt.rival, role, options)
        if key not in self._results:
            self._results[key] = self._run(*key)
        result = self._results[key]
        if isinstance(result, RivalError):
            raise result
        return result

    def _run(self, rival: str, role: GraphRole, options: str) -> Path | RivalError:
        folder = self.folder / f"{role.value}-{len(self._results)}"
        folder.mkdir()
        out = folder / self._graph(role).name
        files = [str(path) for path in (self._graph(role), self._calls(role), out)]
        command = [
            str(self._pythons[rival]),
            "-m",
            f"tests.benchmarks.quantization_rivals.{rival}_job",
            *files,
        ]
        try:
            done = subprocess.run(
                command + shlex.split(options),
                capture_output=True,
                text=True,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(_REPOSITORY)},
                timeout=_LONGEST_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return RivalError(f"{role.value}: {error}")
        (folder / "job.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode != 0:
            return RivalError(f"{role.value}: {_last_line(done.stderr)}")
        try:
            _check_interface(self._graph(role), out)
        except RivalError as error:
            return error
        return out

    def _graph(self, role: GraphRole) -> Path:
        return self.folder / f"{role.value}.onnx"

    def _calls(self, role: GraphRole) -> Path:
        return self.folder / f"{role.value}.npz"


def _last_line(text: str) -> str:
    """Returns the last unindented line: the error message of a traceback."""
    lines = [line for line in text.splitlines() if line and not line.startswith(" ")]
    return lines[-1] if lines else "it gave no reason"


def _check_interface(before: Path, after: Path) -> None:
    """Raises RivalError if inputs or outputs have other names or types."""
    if _interface(before) != _interface(after):
        raise RivalError(f"{before.stem}: it changed the names or types of inputs or outputs")


def _interface(path: Path) -> list[dict[str, int]]:
    graph = onnx.load(path, load_external_data=False).graph
    return [
        {value.name: value.type.tensor_type.elem_type for value in values}
        for values in (graph.input, graph.output)
    ]
