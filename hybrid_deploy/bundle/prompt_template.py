"""The text around the words that a model is asked in."""

from __future__ import annotations

import msgspec

from hybrid_deploy.bundle.field_types import PromptText
from hybrid_deploy.errors import UsageError

PLACE = "{prompt}"
"""Place of the words in a template."""


class PromptTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    r"""The text around the words that a model is asked in, such as `\nQuestion: {prompt} Answer:`.

    The whole text is split into tokens at once, so a word joins its neighbours as it did in
    training; the tokenizer recognises special tokens in it, and adds none.

    Attributes:
        text: text with `{prompt}` once, where the words are put; other braces mean themselves.
        default: words of a run that gives none; None if every run must give words.
        preceded_by: special token that stood before the text in training, such as `<image>`. It is
            split together with the text, and then left out.
    """

    text: PromptText
    default: PromptText | None = None
    preceded_by: PromptText = ""

    def filled(self, words: str | None) -> str:
        """Returns the text with the words in their place.

        Args:
            words: words of the user; None takes the default.

        Raises:
            UsageError: there are no words and no default.
        """
        words = self.default if words is None else words
        if words is None:
            raise UsageError(
                f"the model is asked in words, as {self.text!r}, and has no default; give them "
                "with --prompt-text 'what is this?', or as prompt=session.prompt_tokens(...)"
            )
        return self.text.replace(PLACE, words, 1)


def prompt_template(
    text: str | None, default: str | None = None, preceded_by: str = ""
) -> PromptTemplate | None:
    """Returns a checked template; None for no text.

    Raises:
        UsageError: the text does not have `{prompt}` once, or there is a default without a text.
    """
    if text is None:
        if default is not None:
            raise UsageError("a default prompt needs a prompt template, as 'Question: {prompt}'")
        return None
    if text.count(PLACE) != 1:
        raise UsageError(
            f"a prompt template has {PLACE} once, where the words go, as in 'Question: {PLACE} "
            f"Answer:'; got {text!r}"
        )
    return PromptTemplate(text, default, preceded_by)
