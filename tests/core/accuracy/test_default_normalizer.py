import shutil
from pathlib import Path

import msgspec
import pytest

from hybrid_deploy.accuracy.default_normalizer import (
    default_normalizer,
    hears,
    normalizer_for,
    written_language,
)
from hybrid_deploy.bundle.bundle import Bundle, open_bundle, seal_bundle
from hybrid_deploy.bundle.input_specs import ArrayInput
from hybrid_deploy.bundle.manifest import Vocabulary
from tests.fakes.speech_bundle import WHISPER_START, export_listener, with_start

NO_TIMES = "<|notimestamps|>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_listener(tmp_path_factory.mktemp("bundles") / "listener.bundle")


@pytest.fixture
def listener(shared: Path, tmp_path: Path) -> Path:
    """Path of a copy of the listener; the test may change it."""
    return Path(shutil.copytree(shared, tmp_path / "listener.bundle"))


def test_a_bundle_that_reads_pictures_keeps_case_and_punctuation(tiny_bundle: Bundle) -> None:
    assert not hears(tiny_bundle)
    assert default_normalizer(tiny_bundle) == "none"


@pytest.mark.parametrize(
    ("start", "language", "normalizer"),
    [
        ((WHISPER_START,), "en", "whisper"),  # English-only, as tiny.en
        ((WHISPER_START, NO_TIMES), "en", "whisper"),
        ((WHISPER_START, "<|en|>", "<|transcribe|>", NO_TIMES), "en", "whisper"),
        ((WHISPER_START, "<|de|>", "<|transcribe|>", NO_TIMES), "de", "basic"),
        ((WHISPER_START, "<|yue|>", "<|transcribe|>"), "yue", "basic"),
        ((WHISPER_START, "<|de|>", "<|translate|>"), "en", "whisper"),  # into English
        ((WHISPER_START, "<|transcribe|>"), None, "basic"),  # the model finds the language
        (("<s>",), None, "basic"),  # another recogniser
        (("<s>", "<|en|>"), None, "basic"),
    ],
)
def test_speech_in_english_is_normalised_as_english(
    listener: Path, start: tuple[str, ...], language: str | None, normalizer: str
) -> None:
    bundle = with_start(listener, *start)
    assert hears(bundle)
    assert (written_language(bundle), default_normalizer(bundle)) == (language, normalizer)


def test_sound_beside_another_input(listener: Path) -> None:
    bundle = open_bundle(listener)
    preprocess = bundle.manifest.preprocess
    assert not isinstance(preprocess, tuple)
    both = msgspec.structs.replace(
        bundle.manifest, preprocess=(preprocess, ArrayInput("attention"))
    )
    assert hears(Bundle(bundle.folder, both))


def test_a_vocabulary_names_no_language(listener: Path) -> None:
    manifest = open_bundle(listener).manifest
    plain = Vocabulary((*"abc",), ())
    seal_bundle(listener, msgspec.structs.replace(manifest, vocabulary=plain))
    assert default_normalizer(open_bundle(listener)) == "basic"


def test_a_name_replaces_the_default(listener: Path) -> None:
    bundle = open_bundle(listener)
    assert normalizer_for(bundle, ["one two"], "none").name == "none"
    assert normalizer_for(bundle, ["привет"], "basic").name == "basic"
