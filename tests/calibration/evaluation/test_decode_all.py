import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.evaluation.decode_all import decode_all
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.runtime.session.session import load_session


def test_sequences_come_in_the_order_of_the_samples(bundle: Bundle, images: list[Inputs]) -> None:
    pair = {"image": np.concatenate([images[2]["image"], -images[2]["image"]])}
    samples = [images[0], images[1], pair, images[0]]
    session = load_session(bundle.folder, threads=1)
    expected = [result for sample in samples for result in session.run_arrays(sample)[0]]
    progress: list[tuple[str, int, int]] = []
    decoded = decode_all(bundle, "fp32", samples, lambda *p: progress.append(p), threads=1)
    assert decoded.samples == (0, 1, 2, 2, 3)
    assert decoded.tokens == tuple(result.tokens for result in expected)
    assert decoded.texts == tuple(result.text for result in expected)
    assert progress[-1] == ("decode", 4, 4)
