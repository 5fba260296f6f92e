"""keygen, sign, verify --trusted and run --require-signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("cryptography")

from hybrid_deploy.cli import main


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_from_a_key_to_a_device(own_path: Path, page: Path, tmp_path: Path) -> None:
    key, public = tmp_path / "release.key", tmp_path / "release.key.pub"
    assert call("keygen", key)[0] == 0
    code, output = call("run", own_path, page, "--require-signature", public)
    assert (code, "is not signed" in output) == (1, True)
    code, output = call("sign", own_path, "--key", key, "--version", 4)
    assert (code, "is signed as version 4 by key" in output) == (0, True)
    assert call("run", own_path, page, "--require-signature", public, "--at-least", 4)[0] == 0
    code, output = call("run", own_path, page, "--require-signature", public, "--at-least", 5)
    assert (code, "has version 4, at least 5 is required" in output) == (1, True)
    code, output = call("verify", own_path, "--trusted", public)
    assert (code, "is signed by a trusted key" in output) == (0, True)


def test_a_version_without_a_key_is_a_wrong_request(own_path: Path, page: Path) -> None:
    code, output = call("run", own_path, page, "--at-least", 3)
    assert (code, "--at-least needs the key that is trusted" in output) == (2, True)
