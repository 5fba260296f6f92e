import pytest

from hybrid_deploy.accuracy.scripts import has_words, latin_share, mark_share


@pytest.mark.parametrize(
    ("text", "share"), [("abc", 1), ("привет", 0), ("ab вг", 0.5), ("", 1), ("12 !", 1)]
)
def test_latin_share(text: str, share: float) -> None:
    assert latin_share([text]) == share


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("naive", 0),
        ("é", 1),  # one composed letter, one accent
        ("e\u0301", 1),
        ("हिन्दी", 3 / 3),  # three letters; two vowel signs and a virama
        ("123", 0),
    ],
)
def test_mark_share(text: str, share: float) -> None:
    assert mark_share([text]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["one two"], True),
        (["one", "two"], False),
        (["привет мир"], True),
        (["안녕 하세요"], True),
        (["你好 世界"], False),  # a space where punctuation stood, not between words
        (["すべて の ことば"], False),
        (["กำลัง ทำอะไร"], False),
        (["12 34"], True),
        ([], False),
    ],
)
def test_words_exist_where_a_script_puts_spaces_between_them(texts: list[str], words: bool) -> None:
    assert has_words(texts) is words
