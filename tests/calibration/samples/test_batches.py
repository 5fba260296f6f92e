import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.batches import BatchSize, batch_size, batches
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import InputError


def sample(value: int, length: int, rows: int = 1) -> Inputs:
    return {"x": np.full((rows, length), value, np.float32)}


def test_equal_shapes_run_together() -> None:
    given = [sample(0, 3), sample(1, 4), sample(2, 3), sample(3, 3)]
    found = list(batches(given, BatchSize(2)))
    assert [batch.sample_rows for batch in found] == [((0, 0), (2, 0)), ((1, 0),), ((3, 0),)]
    assert [batch.inputs["x"][:, 0].tolist() for batch in found] == [[0, 2], [1], [3]]


def test_rows_of_a_sample_are_sequences_of_their_own() -> None:
    (batch,) = batches([sample(0, 3), sample(1, 3, rows=2)], BatchSize(8))
    assert batch.sample_rows == ((0, 0), (1, 0), (1, 1))
    assert batch.inputs["x"].shape == (3, 3)


def test_a_fixed_batch_is_filled_up() -> None:
    (batch,) = batches([sample(0, 3), sample(1, 3)], BatchSize(4, is_fixed=True))
    assert batch.sample_rows == ((0, 0), (1, 0))
    assert batch.inputs["x"][:, 0].tolist() == [0, 1, 1, 1]


def test_few_sequences_wait() -> None:
    taken = 0

    def endless() -> Inputs:
        nonlocal taken
        taken += 1
        return sample(taken, length=taken)

    first = next(batches(iter(endless, None), BatchSize(8)))
    assert first.sample_rows == ((0, 0),)
    assert taken == 65, "64 sequences of other shapes wait at most"


def test_batch_size_is_the_exported_one(bundle: Bundle) -> None:
    assert batch_size(bundle, "fp32") == BatchSize(8)


def test_arrays_must_agree() -> None:
    given: Inputs = {"x": np.zeros((2, 3), np.float32), "mask": np.zeros((1, 3), np.int64)}
    with pytest.raises(InputError) as caught:
        next(batches([given], BatchSize(8)))
    assert str(caught.value) == (
        "the arrays of a sample need the same number of sequences, batch first; "
        "got x (2, 3), mask (1, 3)"
    )
