"""Verified copies of a bundle's golden files, which are opened by their paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.paths import GOLDEN_FOLDER, top_folder
from hybrid_deploy.scratch import scratch_folder


@contextmanager
def golden_copy(bundle: Bundle) -> Iterator[Path]:
    """Yields a folder in which the golden files have the paths that they have in the bundle.

    The copies have the hashes of the manifest, whatever happens to the files meanwhile.

    Raises:
        BundleError: a golden file is missing or has changed.
    """
    with scratch_folder("golden") as folder:
        for name in bundle.manifest.files:
            if top_folder(name) == GOLDEN_FOLDER:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with closing(bundle.open_file(name)) as file:
                    file.copy_to(path)
        yield folder
