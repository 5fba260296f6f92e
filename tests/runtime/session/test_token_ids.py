"""Token ids that the model does not know are refused wherever they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hybrid_deploy.bundle.bundle import open_bundle
from hybrid_deploy.bundle.manifest import encode_manifest
from hybrid_deploy.bundle.paths import MANIFEST_FILE
from hybrid_deploy.errors import BundleError, UsageError
from hybrid_deploy.runtime.generation.options import GenerateOptions
from hybrid_deploy.runtime.session.session import Session, load_session

IMAGES = {"image": np.zeros((1, 1, 8, 16), np.float32)}


@pytest.fixture(scope="module")
def session(tiny_path: Path) -> Session:
    return load_session(tiny_path, threads=1)


_NOT_BELOW_0 = r"Expected `int` >= 0 - at `\$\.generation\."


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"pad_token": -1}, _NOT_BELOW_0),
        ({"start_tokens": (-1,)}, _NOT_BELOW_0),
        ({"end_tokens": (2, -1)}, _NOT_BELOW_0),
        ({"end_tokens": (11,)}, "has 11 as an end token, expected an id from 0 to 10; export"),
        ({"suppressed": (-1,)}, _NOT_BELOW_0),
        ({"begin_suppressed": (11,)}, "has 11 as a suppressed token, expected an id from 0 to 10"),
        ({"forced": ((1, 11),)}, "has 11 as a forced token, expected an id from 0 to 10; export"),
        ({"forced": ((1, -1),)}, _NOT_BELOW_0),
        ({"forced_end": -1}, _NOT_BELOW_0),
        ({"forced_end": 11}, "has 11 as the forced end token, expected an id from 0 to 10; export"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_in_defaults(
    own_path: Path, defaults: dict[str, object], message: str
) -> None:
    manifest = open_bundle(own_path).manifest
    generation = msgspec.structs.replace(manifest.generation, **defaults)
    wrong = msgspec.structs.replace(manifest, generation=generation)
    (own_path / MANIFEST_FILE).write_bytes(encode_manifest(wrong))
    with pytest.raises(BundleError, match=message):
        load_session(own_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suppressed": [-1]}, "suppressed has token -1; token ids begin at 0"),
        ({"suppressed": [11]}, "suppressed has token 11, the model's last is 10"),
        ({"forced": {1: -1}}, "forced has token -1; token ids begin at 0"),
        ({"forced": {1: 11}}, "forced has token 11, the model's last is 10"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused_in_options(
    session: Session, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        session.run_arrays(IMAGES, options=GenerateOptions(**options))


@pytest.mark.parametrize("token", [-1, 11])
def test_token_ids_outside_the_vocabulary_are_refused_in_prompts(
    session: Session, token: int
) -> None:
    with pytest.raises(UsageError, match=f"the prompt has token {token}"):
        session.run_arrays(IMAGES, prompt=[token])


def test_suppressed_tokens_of_an_iterator_count_in_every_run(session: Session) -> None:
    (first, *_), _ = session.run_arrays(IMAGES)
    options = GenerateOptions(suppressed=iter([first.tokens[0]]))  # type: ignore[arg-type]
    for _ in range(2):
        results, _ = session.run_arrays(IMAGES, options=options)
        assert first.tokens[0] not in results[0].tokens
