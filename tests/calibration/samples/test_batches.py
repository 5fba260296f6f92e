import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.samples.batches import BatchSize, batch_size, batches
from hybrid_deploy.calibration.samples.samples import Inputs
from hybrid_deploy.errors import InputError


def sample(value: int, length: int, rows: int = 1) -> Inputs:
    return {"x": np.full((rows, length), value, np.float32)}


def test_sequences_of_equal_shape_form_a_batch() -> None:
    samples = [sample(0, 3), sample(1, 4), sample(2, 3), sample(3, 3)]
    grouped = list(batches(samples, BatchSize(2)))
    assert [batch.sample_rows for batch in grouped] == [((0, 0), (2, 0)), ((1, 0),), ((3, 0),)]
    assert [batch.inputs["x"][:, 0].tolist() for batch in grouped] == [[0, 2], [1], [3]]


def test_each_row_of_a_sample_is_a_sequence() -> None:
    (batch,) = batches([sample(0, 3), sample(1, 3, rows=2)], BatchSize(8))
    assert batch.sample_rows == ((0, 0), (1, 0), (1, 1))
    assert batch.inputs["x"].shape == (3, 3)


def test_a_fixed_batch_is_filled_up() -> None:
    (batch,) = batches([sample(0, 3), sample(1, 3)], BatchSize(4, is_fixed=True))
    assert batch.sample_rows == ((0, 0), (1, 0))
    assert batch.inputs["x"][:, 0].tolist() == [0, 1, 1, 1]


def test_at_most_64_sequences_wait_for_their_batch() -> None:
    samples_read = 0

    def endless() -> Inputs:
        nonlocal samples_read
        samples_read += 1
        return sample(samples_read, length=samples_read)

    first = next(batches(iter(endless, None), BatchSize(8)))
    assert first.sample_rows == ((0, 0),)
    assert samples_read == 65, "at most 64 sequences of other shapes wait"


def test_batch_size_is_the_exported_one(bundle: Bundle) -> None:
    assert batch_size(bundle, "fp32") == BatchSize(8)


def test_arrays_of_a_sample_must_have_equally_many_rows() -> None:
    mismatched: Inputs = {"x": np.zeros((2, 3), np.float32), "mask": np.zeros((1, 3), np.int64)}
    with pytest.raises(InputError) as caught:
        next(batches([mismatched], BatchSize(8)))
    assert str(caught.value) == (
        "the arrays of a sample need the same number of sequences, batch first; "
        "got x (2, 3), mask (1, 3)"
    )
