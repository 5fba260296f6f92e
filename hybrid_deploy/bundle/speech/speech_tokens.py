"""The tokens that steer a speech model of Whisper's kind: language, task and timestamps."""

from __future__ import annotations

import msgspec

from hybrid_deploy.bundle.field_types import Length, Name, PositiveNumber, TokenId
from hybrid_deploy.errors import UsageError

AUTO = "auto"
"""Name of the language of a call whose language is detected."""

_NAMED = 8
"""Number of languages that a message lists."""

_FIRST_NAMED = ("en", "de", "es", "fr", "it", "ja", "ru", "zh")


class SpeechTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Tokens of a model that is told its language and task (Whisper, arXiv:2212.04356, 2.3).

    The decoder begins with the start token, the language, the task and, for text without times, the
    token for no timestamps. The start tokens of the bundle's generation defaults hold the choice
    that the export recorded.

    Attributes:
        start: id of the token that every transcript begins with.
        languages: id of each language's token, by its code such as `de`; empty for a model of one
            language.
        tasks: id of each task's token, by its name; empty for a model that only transcribes.
        no_timestamps: id of the token that asks for text without times; None if the model knows no
            timestamps. The token after it is the timestamp of 0 s, and all tokens from there on are
            timestamps.
        timestamp_s: seconds from one timestamp to the next.
        max_initial_timestamp: index of the latest timestamp that a transcript may begin with; None
            for no limit.
        previous: id of the token before the text of an earlier window; None if there is none.
        no_speech: id of the token whose probability after the start token says that nobody speaks;
            None if there is none.
    """

    start: TokenId
    languages: dict[Name, TokenId] = msgspec.field(default_factory=dict)
    tasks: dict[Name, TokenId] = msgspec.field(default_factory=dict)
    no_timestamps: TokenId | None = None
    timestamp_s: PositiveNumber = 0.02
    max_initial_timestamp: Length | None = None
    previous: TokenId | None = None
    no_speech: TokenId | None = None

    @property
    def first_timestamp(self) -> int:
        """The id of the timestamp of 0 s; the ids from it on are timestamps.

        Raises:
            UsageError: the model knows no timestamps.
        """
        if self.no_timestamps is None:
            raise UsageError("the model knows no timestamps; run it without them")
        return self.no_timestamps + 1

    def language_of(self, tokens: tuple[int, ...]) -> str | None:
        """Returns the code of the language whose token is among `tokens`; None without one."""
        return next((code for code, token in self.languages.items() if token in tokens), None)

    def start_tokens(
        self,
        default: tuple[int, ...],
        language: str | None = None,
        task: str | None = None,
        *,
        timestamps: bool = False,
    ) -> tuple[int, ...]:
        """Returns the tokens that a transcript begins with.

        Args:
            default: start tokens of the bundle, which count where the call names nothing.
            language: code of the language; None takes the default's, and so does "auto", which is
                detected later.
            task: name of the task; None takes the default's.
            timestamps: whether the text has timestamps.

        Raises:
            UsageError: the model does not have the language, the task or timestamps.
        """
        chosen = [token for token in default if token != self.no_timestamps]
        if language is not None and (token := self._language(language)) is not None:
            chosen = _replaced(chosen, token, set(self.languages.values()), 1)
        if task is not None:
            chosen = _replaced(chosen, self._task(task), set(self.tasks.values()), len(chosen))
        if timestamps:
            self.first_timestamp  # noqa: B018  # refuses a model without timestamps
        elif self.no_timestamps in default:
            chosen.append(self.no_timestamps)
        return tuple(chosen)

    def _language(self, language: str) -> int | None:
        if not self.languages:
            raise UsageError("the model has one language and is not told which; leave it out")
        if language != AUTO and language not in self.languages:
            first = [code for code in _FIRST_NAMED if code in self.languages]
            named = (first or sorted(self.languages))[:_NAMED]
            rest = len(self.languages) - len(named)
            more = f" and {rest} more" if rest else ""
            raise UsageError(
                f"the model has no language {language!r}; it has {', '.join(named)}{more}, or "
                f"{AUTO} to detect it"
            )
        return self.languages.get(language)

    def _task(self, task: str) -> int:
        if not self.tasks:
            raise UsageError("the model only transcribes and is told no task; leave it out")
        if task not in self.tasks:
            raise UsageError(f"the model has no task {task!r}; it has {', '.join(self.tasks)}")
        return self.tasks[task]


def speech_tokens_of(speech: SpeechTokens | None, origin: str) -> SpeechTokens:
    """Returns the speech tokens of a bundle.

    Args:
        speech: what the manifest has.
        origin: name of the bundle in the message.

    Raises:
        UsageError: the bundle has none.
    """
    if speech is None:
        raise UsageError(
            f"{origin} knows no languages, tasks or timestamps: its model has none, or it was "
            "exported before they were recorded; export it again, or leave the options out"
        )
    return speech


def _replaced(tokens: list[int], token: int, kind: set[int], place: int) -> list[int]:
    """Returns `tokens` with `token` for the one of its kind; inserted at `place` if none is."""
    if kind & {*tokens}:
        return [token if old in kind else old for old in tokens]
    return [*tokens[:place], token, *tokens[place:]]
