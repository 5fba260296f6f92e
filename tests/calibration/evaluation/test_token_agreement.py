from hybrid_deploy.calibration.evaluation.token_agreement import Agreement, compare_tokens


def test_tokens_are_compared_index_by_index() -> None:
    pairs = [((1, 2, 3), (1, 2, 3)), ((1, 2, 3, 4), (1, 5, 3))]
    agreement = compare_tokens(pairs)
    assert agreement == Agreement(sequences=2, same_sequences=1, tokens=7, same_tokens=5)
    assert agreement.token_share == 5 / 7


def test_nothing_to_compare() -> None:
    assert compare_tokens([]).token_share == 1.0
