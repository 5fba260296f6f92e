"""What happens to the files of a bundle does not change a loaded session.

The changes are made in processes of their own, because a session that maps a file that is cut ends
with SIGBUS.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.bundle.bundle import open_bundle, seal_bundle
from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from tests.fakes.session_answers import CHANGES

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def with_tokenizer(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the tiny bundle whose vocabulary is a tokenizer's file."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.bundle"
    shutil.copytree(tiny_path, path)
    manifest = open_bundle(path).manifest
    assert isinstance(manifest.vocabulary, Vocabulary)
    ids = {token: index for index, token in enumerate(manifest.vocabulary.tokens)}
    words = tokenizers.models.WordLevel(ids, unk_token="_")
    tokenizers.Tokenizer(words).save(str(path / "tokenizer.json"))
    vocabulary = Tokenizer("tokenizer.json", manifest.vocabulary.special)
    seal_bundle(path, msgspec.structs.replace(manifest, vocabulary=vocabulary))
    return path


def run_child(bundle: Path, change: str) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the answers of a session whose files were changed, and the notes of its results."""
    command = [sys.executable, "-m", "tests.fakes.session_answers", str(bundle), change]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    texts, notes = json.loads(done.stdout)
    return texts, notes


@pytest.fixture(scope="module")
def expected(with_tokenizer: Path) -> dict[str, list[str]]:
    texts, notes = run_child(with_tokenizer, "nothing")
    assert not notes and len({str(answer) for answer in texts.values()}) > 1
    return texts


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "nothing"])
def test_a_loaded_session_keeps_its_text(
    with_tokenizer: Path, expected: dict[str, list[str]], change: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.bundle"
    shutil.copytree(with_tokenizer, path)
    texts, notes = run_child(path, change)
    assert texts == expected
    lost = change in ("cut", "overwritten")
    assert len(notes) == lost, "an open file outlives its name, not its content"
    assert all("weights.bin was changed" in note for note in notes)
