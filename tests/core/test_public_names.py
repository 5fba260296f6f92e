import pytest

import hybrid_deploy


@pytest.mark.parametrize("name", [name for name in hybrid_deploy.__all__ if name[0] != "_"])
def test_every_public_name_is_importable(name: str) -> None:
    assert callable(getattr(hybrid_deploy, name))


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'walk'"):
        hybrid_deploy.walk  # noqa: B018
