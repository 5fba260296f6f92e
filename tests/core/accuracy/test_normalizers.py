import logging
import sys

import pytest

from hybrid_deploy.accuracy.normalizers import (
    AS_DECODED,
    NORMALIZERS,
    basic_text,
    check_labels,
    load_normalizer,
)
from hybrid_deploy.errors import InputError, MissingDependencyError, UsageError

LIBRARY = "whisper_normalizer"
TEXTS = [
    " Mr. Smith paid $20 million.", "it's  OK\n", "(laughs) yes [noise] ok <unk>", "Grüße, naïve",
    "ﬁne ½ ②", "हिन्दी में, बात", "กำลังทำอะไร", "がんばって!", "مُحَمَّد", "中文\uff0c标点",
    "İstanbul", "a\x1b[31mred\x00b\tc", "a\u200bb", "1,000.50 100%", "", " \t ", "e\u0301té",
    "(a (b) c) [d",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("Hello, World!", "hello world"),
        ("hello\tworld \n", "hello world"),
        ("cafe\u0301", "café"),  # one Unicode form
        ("ﬁve", "five"),
        ("\uff21\uff22\uff23", "abc"),
        ("well [music] done (applause)", "well done"),
    ],
)
def test_basic_makes_equal_what_sounds_equal(text: str, same_as: str) -> None:
    assert load_normalizer("basic")(text) == same_as == load_normalizer("basic")(same_as)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("colour", "color"),
        ("two", "2"),
        ("हिन्दी", "हिन्द"),  # vowel signs make words
        ("が", "か"),
        ("й", "и"),
        ("naïve", "naive"),
    ],
)
def test_basic_keeps_what_makes_another_word(one: str, other: str) -> None:
    assert basic_text(one) != basic_text(other)


def test_basic_is_that_of_whisper_with_its_marks_kept() -> None:
    library = pytest.importorskip(f"{LIBRARY}.basic")
    theirs = library.BasicTextNormalizer(preserve_marks=True)
    assert [basic_text(text) for text in TEXTS] == [theirs(text).strip() for text in TEXTS]


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("Mr. Neill can't come", "mister neill can not come"),
        ("the colour grey", "the color gray"),
        ("twenty-one", "21"),
        ("two hundred and thirty five", "235"),
        ("it cost $20", "it cost 20 dollars"),
        ("um, I'm here", "i am here"),
        ("naïve", "naive"),
        ("1,000", "1000"),
    ],
)
def test_whisper_makes_equal_what_english_spells_in_several_ways(text: str, same_as: str) -> None:
    pytest.importorskip(LIBRARY)
    whisper = load_normalizer("whisper")
    assert whisper(text) == whisper(same_as)
    assert basic_text(text) != basic_text(same_as)


@pytest.mark.parametrize(("one", "other"), [("there", "their"), ("21", "22"), ("gray", "great")])
def test_whisper_keeps_what_makes_another_word(one: str, other: str) -> None:
    pytest.importorskip(LIBRARY)
    assert load_normalizer("whisper")(one) != load_normalizer("whisper")(other)


def test_none_ignores_spaces_at_the_ends_alone() -> None:
    assert load_normalizer("none") is AS_DECODED
    assert AS_DECODED(" I'm  here. ") == "I'm  here."


def test_control_characters_are_characters_like_others() -> None:
    assert basic_text("a\x1bb") == "a\x1bb"
    assert AS_DECODED("a\x1bb\x00") == "a\x1bb\x00"


def test_unknown_normalizer() -> None:
    with pytest.raises(UsageError) as caught:
        load_normalizer("upper")
    assert str(caught.value) == "unknown normalizer 'upper'; choose whisper, basic, none"


def test_missing_library_is_named_with_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_deploy.accuracy import normalizers

    normalizers._english.cache_clear()
    monkeypatch.setitem(sys.modules, f"{LIBRARY}.english", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_normalizer("whisper")
    assert str(caught.value) == (
        "whisper-normalizer is not installed; install it with: pip install "
        "'hybrid-deploy[report]', or give --normalize basic"
    )
    assert [load_normalizer(name).name for name in NORMALIZERS[1:]] == ["basic", "none"]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["привет", "мир", "ok"], "82% of the labels' letters are not Latin"),
        (["हिन्दी में बात"], "100% of the labels' letters are not Latin"),
        (["がんばって"], "100% of the labels' letters are not Latin"),
        (["tiếng Việt"], "it would drop the accents of 44% of the labels' letters"),
    ],
)
def test_whisper_is_refused_where_it_would_destroy_the_texts(
    labels: list[str], problem: str
) -> None:
    pytest.importorskip(LIBRARY)
    with pytest.raises(InputError) as caught:
        check_labels(labels, load_normalizer("whisper"))
    assert str(caught.value) == (
        f"--normalize whisper is for English, and {problem}; give --normalize basic"
    )
    check_labels(labels, load_normalizer("basic"))
    check_labels(labels, AS_DECODED)


def test_dropped_accents_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip(LIBRARY)
    whisper = load_normalizer("whisper")
    with caplog.at_level(logging.WARNING):
        check_labels(["a naïve man walks on and on " * 5 + "x" * 200, "one two three"], whisper)
    assert caplog.messages[0].startswith("whisper drops the accents of 1.6 % of the labels' lette")
    caplog.clear()
    check_labels(["the birch canoe slid on the smooth planks"], whisper)
    assert caplog.messages == []


def test_labels_that_become_empty_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_labels(["...", "", "yes"], load_normalizer("basic"))
    assert caplog.messages == [
        "1 of 3 labels are empty once basic has normalised them; whatever is decoded there counts "
        "as errors"
    ]


def test_fillers_are_empty_in_english() -> None:
    pytest.importorskip(LIBRARY)
    assert load_normalizer("whisper")("Uh, um.") == ""
