"""Which weights of a 4-bit decoder get 8 bits."""

from __future__ import annotations

import pytest

from hybrid_deploy.calibration.qdq.layers import Layer
from hybrid_deploy.calibration.qdq.vocabulary_projection import MIN_VOCABULARY
from hybrid_deploy.calibration.variants import bit_allocation
from hybrid_deploy.calibration.variants.bit_allocation import (
    MAX_MEAN_BITS,
    can_rank,
    layers_in_8_bits,
    stored_bits,
)
from hybrid_deploy.calibration.variants.sensitivity import Sensitivity


def layer(name: str, summed: int, channels: int) -> Layer:
    return Layer(name, "MatMul", (summed, channels), summed, {})


def ranking(*layers: tuple[str, int, int, float]) -> list[Sensitivity]:
    return [Sensitivity(layer(n, i, o), kl, 1.0) for n, i, o, kl in layers]


@pytest.mark.parametrize(
    ("summed", "bits", "block", "expected"),
    [
        (384, 4, 32, 5.0),  # a float32 scale for 32 weights
        (384, 4, 128, 4.25),
        (384, 8, 128, 8.25),
        (96, 4, 128, 5.0),  # 32 is the largest block that divides 96
        (50, 4, 32, 8.64),  # no block divides 50, so int8 with one scale for each channel
    ],
)
def test_bits_of_a_weight(summed: int, bits: int, block: int, expected: float) -> None:
    assert stored_bits(layer("a", summed, 10), bits, block) == pytest.approx(10 * summed * expected)


def mean_bits(chosen: tuple[str, ...], ranked: list[Sensitivity], projection: Layer) -> float:
    layers = [s.layer for s in ranked]
    bits = sum(stored_bits(x, *((8, 128) if x.name in chosen else (4, 32))) for x in layers)
    parameters = sum(x.parameter_count for x in [*layers, projection])
    return (bits + stored_bits(projection, 4, 128)) / parameters


def test_the_most_sensitive_for_their_size_come_first_within_the_mean() -> None:
    ranked = ranking(
        ("large", 128, 2048, 0.02), ("small", 128, 512, 0.01), ("calm", 128, 512, 0.0001),
    )  # fmt: skip
    projection = layer("projection", 128, 4800)
    chosen = layers_in_8_bits(ranked, projection)
    assert chosen == ("small", "calm"), "the large one does not fit, so the next is taken"
    assert mean_bits(chosen, ranked, projection) <= MAX_MEAN_BITS
    assert mean_bits((*chosen, "large"), ranked, projection) > MAX_MEAN_BITS
    wide = layer("projection", 128, 20_000)
    assert layers_in_8_bits(ranked, wide) == ("small", "large", "calm")


def test_the_projection_to_a_small_vocabulary_counts_with_its_8_bits() -> None:
    ranked = ranking(("small", 128, 128, 0.01))
    assert layers_in_8_bits(ranked, layer("projection", 128, MIN_VOCABULARY)) == ("small",)
    assert layers_in_8_bits(ranked, layer("projection", 128, MIN_VOCABULARY - 1)) == ()


def test_larger_blocks_leave_more_bits_to_spend() -> None:
    ranked = ranking(("a", 128, 128, 0.03), ("b", 128, 128, 0.02), ("c", 128, 600, 0.01))
    assert layers_in_8_bits(ranked, None) == (), "blocks of 32 have 5 bits already"
    assert layers_in_8_bits(ranked, None, 128) == ("a",)


def test_a_layer_without_blocks_has_8_bits_anyway() -> None:
    ranked = ranking(("odd", 50, 100, 0.5), ("even", 128, 100, 0.1))
    assert layers_in_8_bits(ranked, layer("projection", 128, 5000)) == ("even",)


def test_large_models_are_not_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [layer(str(number), 100, 100) for number in range(10)]
    assert can_rank(layers)
    monkeypatch.setattr(bit_allocation, "MAX_RANKED_PARAMETERS", 10 * 10 * 100 * 100 - 1)
    assert not can_rank(layers)
