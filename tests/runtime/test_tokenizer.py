"""Token ids to text and text to token ids, with a vocabulary and with a tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from hybrid_deploy.bundle.input_specs import (
    ArrayInput,
    ImageInput,
    PixelsInput,
    Preprocess,
    TextInput,
)
from hybrid_deploy.bundle.manifest import Tokenizer, Vocabulary
from hybrid_deploy.errors import BundleError, InputError, MissingDependencyError, UsageError
from hybrid_deploy.runtime.preprocess.prepare import file_kind, is_companion_text, prepare
from hybrid_deploy.runtime.tokenizer import load_tokenizer, text_of, tokens_of

WORDS = Vocabulary(tuple("_^$abc"), (0, 1, 2))


def write_tokenizer(path: Path, words: str = "<pad> hello , world") -> Path:
    vocabulary = {word: index for index, word in enumerate(words.split())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(1)
    path.write_text(tokenizer.to_str())
    return path


def test_vocabulary_leaves_out_special_tokens() -> None:
    assert text_of([1, 3, 4, 2, 0, 99], WORDS) == "ab?"


def test_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    plain = Tokenizer("tokenizer.json", skip=(0,))
    assert text_of([1, 2, 0, 3, 99], plain, tmp_path) == "hello , world"
    tidy = Tokenizer("tokenizer.json", skip=(0,), tidy=True)
    assert text_of([1, 2, 0, 3], tidy, tmp_path) == "hello, world"
    assert tokens_of("world hello", plain, tmp_path) == [3, 1], "neither padded nor cut"


def test_replaced_tokenizer_is_read_again(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    spec = Tokenizer("tokenizer.json")
    assert text_of([1], spec, tmp_path) == "hello"
    write_tokenizer(path, "<pad> goodbye")
    assert text_of([1], spec, tmp_path) == "goodbye"


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    spec = Tokenizer("tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing; copy the bundle again"):
        text_of([1], spec, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer: .*; export it"):
        text_of([1], spec, tmp_path)


@pytest.mark.parametrize("vocabulary", [None, WORDS])
def test_text_needs_a_tokenizer(tmp_path: Path, vocabulary: Vocabulary | None) -> None:
    with pytest.raises(UsageError, match="give token ids with --prompt"):
        tokens_of("abc", vocabulary, tmp_path)


def test_text_inputs_that_cannot_be_prepared(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    spec = TextInput("input_ids", "tokenizer.json", 4)
    (tmp_path / "latin.txt").write_bytes("grüße".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.txt is not UTF-8 text"):
        prepare([tmp_path / "latin.txt"], spec, folder=tmp_path)
    with pytest.raises(InputError, match=r"no\.txt does not exist"):
        prepare([tmp_path / "no.txt"], spec, folder=tmp_path)
    with pytest.raises(InputError, match="takes no mask; run them one by one"):
        prepare([], spec, folder=tmp_path, texts=["hello", "hello world"])
    with pytest.raises(InputError, match="no input files were given"):
        prepare([], spec, folder=tmp_path)
    with pytest.raises(InputError, match="2 texts were given for 1 files"):
        both = (PixelsInput("x", ()), spec)
        prepare([tmp_path / "a.png"], both, folder=tmp_path, texts=["a", "b"])


def test_several_arrays(tmp_path: Path) -> None:
    spec = ArrayInput("features", ("mask",))
    features, mask = np.ones((1, 3, 2), np.float32), np.ones((1, 3), np.int64)
    np.savez(tmp_path / "a.npz", features=features, mask=mask)
    batch = prepare([tmp_path / "a.npz"] * 2, spec)
    assert {name: array.shape for name, array in batch.items()} == {
        "features": (2, 3, 2),
        "mask": (2, 3),
    }
    np.save(tmp_path / "b.npy", features)
    with pytest.raises(InputError, match=r"b\.npy lacks mask; give a \.npz file"):
        prepare([tmp_path / "b.npy"], spec)
    np.savez(tmp_path / "c.npz", features=features[:, :2], mask=mask)
    with pytest.raises(InputError, match="do not form a batch; run them one by one"):
        prepare([tmp_path / "a.npz", tmp_path / "c.npz"], spec)
    np.savez(tmp_path / "d.npz", features=np.array([object()]), mask=mask)
    with pytest.raises(InputError, match=r"d\.npz is a damaged \.npz file: it holds object"):
        prepare([tmp_path / "d.npz"], spec)
    np.save(tmp_path / "e.npy", np.float32(1))
    with pytest.raises(InputError, match="holds a single number"):
        prepare([tmp_path / "e.npy"], ArrayInput("features"))


def test_kinds_of_input_files() -> None:
    text, pixels = TextInput("t", "tokenizer.json", 4), PixelsInput("x", ())
    lines = ImageInput("image", "L", 8, None, 4, 12, 64, 0, 255, (1.0,), (0.5,))
    kinds: list[tuple[Preprocess, str, str]] = [
        (text, "texts", ".txt"),
        (lines, "images", ".png"),
        ((text, pixels), "images", ".jpg"),
        (ArrayInput("x"), ".npy files", ".npy"),
        (ArrayInput("x", ("y",)), ".npz files", ".npz"),
    ]
    for spec, name, suffix in kinds:
        assert file_kind(spec).name == name
        assert suffix in file_kind(spec).suffixes
    assert is_companion_text(Path("a.txt"), (text, pixels))
    assert not is_companion_text(Path("a.txt"), text)
    assert not is_companion_text(Path("a.png"), (text, pixels))


def test_missing_tokenizers_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        MissingDependencyError,
        match=r"^tokenizers is not installed; .* pip install 'hybrid-deploy\[text\]'$",
    ):
        load_tokenizer(tmp_path, "tokenizer.json")
