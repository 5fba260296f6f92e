import pytest

import hybrid_deploy


@pytest.mark.parametrize("verb", [name for name in hybrid_deploy.__all__ if name[0] != "_"])
def test_every_verb_is_a_function(verb: str) -> None:
    assert callable(getattr(hybrid_deploy, verb))


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'walk'"):
        hybrid_deploy.walk  # noqa: B018
