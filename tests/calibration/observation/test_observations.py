"""Shards, interrupted runs and saved files lead to the same bytes of scales as one run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.collect import observe_samples
from hybrid_deploy.calibration.observation.observations import Observations, read_observations
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.samples.samples import Samples, open_samples
from hybrid_deploy.calibration.statistics.fingerprint import fingerprint_of
from hybrid_deploy.calibration.statistics.range_methods import METHODS
from hybrid_deploy.calibration.statistics.scales import encode_scales
from hybrid_deploy.errors import CalibrationError, InputError
from hybrid_deploy.onnx_graphs.files import load_graphs

Images = list[dict[str, NDArray[np.float32]]]
Run = Callable[..., Observations]


@pytest.fixture
def samples(bundle: Bundle, images: Images) -> Samples:
    return open_samples(images, bundle.manifest.preprocess)


@pytest.fixture
def run(bundle: Bundle, samples: Samples) -> Run:
    graphs = load_graphs(bundle, "fp32")

    def observe(**options: object) -> Observations:
        return observe_samples(bundle, "fp32", graphs, samples, **options)  # type: ignore[arg-type]

    return observe


def all_scales(observations: Observations) -> list[bytes]:
    return [encode_scales(observations.scales(method)) for method in METHODS]


def test_shards_in_any_order_equal_one_run(run: Run) -> None:
    shards = [run(shard=(index, 3)) for index in (2, 0, 1)]
    for shard in shards[1:]:
        shards[0].merge(shard)
    assert all_scales(shards[0]) == all_scales(run())


def test_a_saved_file_holds_everything(run: Run, tmp_path: Path) -> None:
    observations = run()
    observations.save(tmp_path / "folder" / "all.npz")
    assert all_scales(read_observations(tmp_path / "folder" / "all.npz")) == all_scales(
        observations
    )


def test_an_interrupted_run_continues(run: Run, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    state, progress = tmp_path / "state.npz", list[int]()
    with pytest.raises(KeyboardInterrupt):
        run(state=state, progress=interrupt)
    assert sorted(read_observations(state).samples) == [0, 1]
    resumed = run(state=state, progress=lambda stage, done, total: progress.append(done))
    assert progress == [0, 1, 2, 3]
    assert all_scales(resumed) == all_scales(run())


def test_observed_samples_are_not_decoded_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(state=tmp_path / "state.npz")
    monkeypatch.setattr(ObservedModel, "start", lambda *_: pytest.fail("decoded again"))
    assert all_scales(run(state=tmp_path / "state.npz")) == all_scales(first)


KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
import numpy as np
from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.calibration.observation import collect
from hybrid_deploy.calibration.samples.samples import open_samples
from hybrid_deploy.onnx_graphs.files import load_graphs

collect._SAVE_EVERY_S = 0.0  # after every sample, as in a long run
bundle = open_bundle(Path(sys.argv[1]))
samples = open_samples([dict(np.load(f)) for f in sys.argv[3:]], bundle.manifest.preprocess)

def kill_self(stage, done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

graphs = load_graphs(bundle, "fp32")
collect.observe_samples(
    bundle, "fp32", graphs, samples, state=Path(sys.argv[2]), progress=kill_self
)
"""


def test_a_killed_run_continues(run: Run, bundle: Bundle, images: Images, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.npz" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        np.savez(file, allow_pickle=False, **image)
    state = tmp_path / "state.npz"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_HALF_WAY, bundle.folder, state, *files], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(read_observations(state).samples) == [0, 1]
    assert all_scales(run(state=state)) == all_scales(run())


def test_observations_that_cannot_be_merged(run: Run) -> None:
    all_samples, shard = run(), run(shard=(1, 3))
    with pytest.raises(CalibrationError, match="sample 1 is in both observations; give each once"):
        all_samples.merge(shard)
    other = Observations(
        fingerprint=type(all_samples.fingerprint)("another", "fp32", {}, {}, "x 1.0")
    )
    with pytest.raises(
        CalibrationError, match=r"of tiny fp32 .* and of another fp32 .* cannot be merged"
    ):
        all_samples.merge(other)


def test_new_weights_of_the_same_graphs_have_another_fingerprint(bundle: Bundle) -> None:
    files = dict(bundle.manifest.files)
    (weights,) = (name for name in files if name.startswith("fp32/weights"))
    files[weights] = msgspec.structs.replace(files[weights], sha256="0" * 64)
    retrained = Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files))
    before, after = (fingerprint_of(each, "fp32") for each in (bundle, retrained))
    assert before.graphs == after.graphs
    assert before != after


def test_a_state_file_of_other_samples_is_refused(
    run: Run, bundle: Bundle, images: Images, tmp_path: Path
) -> None:
    run(state=tmp_path / "state.npz", shard=(0, 3))
    images[0]["image"] += 0.5
    changed = open_samples(images, bundle.manifest.preprocess)
    with pytest.raises(CalibrationError, match="sample 0 is not the one that was observed before"):
        observe_samples(
            bundle, "fp32", load_graphs(bundle, "fp32"), changed, state=tmp_path / "state.npz"
        )


def test_files_that_hold_no_observations(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "observations.npz"
    with pytest.raises(InputError, match=r"observations\.npz does not exist"):
        read_observations(path)
    run(shard=(0, 3)).save(path)
    intact = path.read_bytes()
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    for damaged in (
        b"",
        intact[: len(intact) // 2],
        b"x" * 100,
        (tmp_path / "other.npz").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CalibrationError, match="does not hold observations"):
            read_observations(path)


def test_observations_of_an_older_layout(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "observations.npz"
    run(shard=(0, 3)).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    about = msgspec.json.decode(arrays["about"].tobytes())
    del about["layout"]
    arrays["about"] = np.frombuffer(msgspec.json.encode(about), np.uint8)
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(CalibrationError, match="missing required field `layout`; collect them"):
        read_observations(path)
