"""ONNX Runtime loads the bytes that the manifest lists, and no others."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle, open_bundle
from hybrid_deploy.bundle.manifest import encode_manifest
from hybrid_deploy.errors import BackendError, BundleError
from hybrid_deploy.runtime.backends.onnxruntime import variant_sessions
from hybrid_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from hybrid_deploy.runtime.backends.registry import BackendOptions
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session, load_session

WEIGHTS = "fp32/weights.bin"


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\x3f" * path.stat().st_size)


@pytest.mark.parametrize("name", [WEIGHTS, "fp32/beam_step.onnx", "fp32/encoder.onnx"])
def test_a_file_that_changed_after_the_hash_is_not_loaded(bundle: Bundle, name: str) -> None:
    opened = open_bundle(bundle.folder)
    overwrite(bundle.folder / name)
    with pytest.raises(BundleError, match=f"is damaged: {name} was changed"):
        OnnxRuntimeBackend(opened, "fp32", BackendOptions())


def test_weights_that_the_manifest_does_not_list_are_not_loaded(
    own_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_bundle(own_path).manifest
    files = {name: record for name, record in manifest.files.items() if name != WEIGHTS}
    changed = encode_manifest(msgspec.structs.replace(manifest, files=files))
    (own_path / "manifest.json").write_bytes(changed)
    monkeypatch.chdir(own_path / "fp32")  # where ONNX Runtime could look for them
    with pytest.raises(BackendError, match=r"onnxruntime failed in loading .*encoder\.onnx"):
        load_session(own_path)


@pytest.mark.parametrize(
    ("late", "replacement"),
    [("prefill", "prompts are decoded token by token"), ("beams", "every beam has a copy")],
)
def test_a_late_graph_whose_weights_changed_is_replaced(
    bundle: Bundle,
    images: list[dict[str, NDArray[np.float32]]],
    late: str,
    replacement: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step takes its place; the beam step is late if its tensors are not those of the step."""
    monkeypatch.setattr(variant_sessions, "_have_same_tensors", lambda specs: False)
    options = GenerateOptions(beams=2 if late == "beams" else 1)
    prompt = [4, 5, 6] if late == "prefill" else []

    def tokens(session: Session) -> tuple[int, ...]:
        return session.run_arrays(images[0], prompt=prompt, options=options)[0][0].tokens

    expected = tokens(load_session(bundle.folder, threads=1))
    session = load_session(bundle.folder, threads=1)
    overwrite(bundle.folder / WEIGHTS)
    assert tokens(session) == expected
    (note,) = session.run_arrays(images[0])[1].notes
    assert note.startswith(replacement) and f"{WEIGHTS} was changed" in note
