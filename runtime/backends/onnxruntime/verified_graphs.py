"""The graphs of a variant as ONNX Runtime loads them: bytes and weights that were verified.

ONNX Runtime maps the weights of a graph from their file. If that were the file in the bundle, then
whoever swaps it between the hash and the load, or changes it later, would change the text of a
session, and a file that is cut would end the process. So the weights are copied from the descriptor
that is hashed, to a folder that only this process knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.bundle_file import BundleFile
from hybrid_deploy.bundle.manifest import GraphSpec
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.host.private_folder import private_folder


@dataclass(frozen=True)
class VerifiedGraph:
    """A graph whose bytes are verified.

    Attributes:
        model: content of the ONNX file.
        weights_folder: folder with the verified weights that the model refers to.
    """

    model: bytes
    weights_folder: Path


class VerifiedGraphs:
    """The graphs of one variant, read once.

    The ONNX files are read at once. Their weights are larger: they are copied when graphs are
    loaded, from files that stay open until the last graph is loaded. So a graph that is loaded late
    has the weights of the manifest, whatever lies in the folder by then, or it is not loaded.

    Args:
        bundle: the bundle.
        specs: the graphs, by role. A graph that no manifest lists was written by this process, and
            is loaded from where it lies.

    Raises:
        BundleError: a file is missing or has changed.
    """

    def __init__(self, bundle: Bundle, specs: Mapping[GraphRole, GraphSpec]) -> None:
        self._listed = {r: s.file for r, s in specs.items() if s.file in bundle.manifest.files}
        self._own = {r: bundle.folder / s.file for r, s in specs.items() if r not in self._listed}
        self._models = {role: bundle.read_file(file) for role, file in self._listed.items()}
        homes = {str(PurePosixPath(file).parent) for file in self._listed.values()}
        self._weights: Mapping[str, BundleFile] = {
            PurePosixPath(name).name: bundle.open_file(name)
            for name in bundle.manifest.files
            if str(PurePosixPath(name).parent) in homes and PurePosixPath(name).suffix != ".onnx"
        }

    @contextmanager
    def loading(
        self, roles: Sequence[GraphRole]
    ) -> Iterator[Mapping[GraphRole, Path | VerifiedGraph]]:
        """Yields graphs to be loaded within the block; each is loaded once.

        Raises:
            BundleError: a file has changed.
            BackendError: there is no room for a copy of the weights.
        """
        graphs: dict[GraphRole, Path | VerifiedGraph] = {
            role: self._own[role] for role in roles if role in self._own
        }
        listed = [role for role in roles if role in self._listed]
        if not listed:
            yield graphs
            return
        with private_folder(sum(file.size_bytes for file in self._weights.values())) as folder:
            self._copy_weights(folder)
            yield graphs | {role: VerifiedGraph(self._models[role], folder) for role in listed}
        for role in listed:
            self._models.pop(role)
        if not self._models:
            self._weights = {}

    def _copy_weights(self, folder: Path) -> None:
        for name, file in self._weights.items():
            try:
                file.copy_to(folder / name)
            except OSError as error:
                raise BackendError(
                    f"{file.path} cannot be copied to {folder}: {error.strerror}; make room there, "
                    "or name another folder in $TMPDIR"
                ) from error
