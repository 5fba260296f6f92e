"""The prompts of a batch: start tokens by language and task, template, and the user's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.speech.speech_tokens import AUTO, SpeechTokens, speech_tokens_of
from hybrid_deploy.contract import LOGITS, GraphRole
from hybrid_deploy.errors import UsageError
from hybrid_deploy.runtime.backends.protocol import Decoding, IntArray
from hybrid_deploy.runtime.generation.logits import prompt_logits
from hybrid_deploy.runtime.generation.options import GREEDY, GenerateOptions
from hybrid_deploy.runtime.tokenizer import BundleTokenizers, tokens_of


class PromptMaker:
    """Makes the prompts that the decoder of a bundle begins with.

    Args:
        bundle: the bundle.
        variant: name of the variant.
        tokenizers: tokenizers of the bundle.
    """

    def __init__(self, bundle: Bundle, variant: str, tokenizers: BundleTokenizers) -> None:
        self._bundle = bundle
        self._tokenizers = tokenizers
        outputs = bundle.graph(variant, GraphRole.STEP).outputs
        self._vocabulary = next((t.shape[-1] for t in outputs if t.name == LOGITS), None)

    def prompt(
        self, given: tuple[int, ...], options: GenerateOptions | None = None
    ) -> tuple[int, ...]:
        """Returns the start tokens and the prompt; start tokens in the prompt are not doubled.

        Without a prompt, the template's default words are the prompt of a model with a template. A
        prompt that begins with the token for earlier text stands before the start tokens.

        Args:
            given: ids of the user's tokens; () for none.
            options: options with language, task and timestamps; a language that is to be detected
                counts as the default one.

        Raises:
            UsageError: there is neither a start token nor a prompt, a token is not in the model's
                vocabulary, or the model lacks the language, the task or timestamps.
        """
        template = self._bundle.manifest.prompt
        if not given and template is not None:
            vocabulary = self._bundle.manifest.vocabulary
            given = tuple(tokens_of(None, vocabulary, self._tokenizers, template))
        start_tokens = self._start_tokens(options or GREEDY)
        if not given:
            if not start_tokens:
                raise UsageError(
                    f"{self._bundle.folder} has no start tokens; give a prompt to continue, as "
                    "--prompt 1,5, or export it with --start"
                )
            return start_tokens
        self._check_token_ids(given)
        speech = self._bundle.manifest.speech
        if speech is not None and given[0] == speech.previous:
            is_whole = given[-len(start_tokens) :] == start_tokens
            return given if is_whole else given + start_tokens
        has_start_tokens = given[: len(start_tokens)] == start_tokens
        return given if has_start_tokens else start_tokens + given

    def prompts_in(
        self, languages: Sequence[str], given: tuple[int, ...], options: GenerateOptions
    ) -> list[tuple[int, ...]]:
        """Returns the prompt of every sequence in its language.

        Args:
            languages: code of the language of each sequence.
            given: as in `prompt`.
            options: as in `prompt`.
        """
        return [self.prompt(given, replace(options, language=code)) for code in languages]

    def detected_languages(self, decoding: Decoding) -> tuple[str, ...]:
        """Returns the code of the likeliest language of every sequence.

        It is the likeliest language token after the start token (arXiv:2212.04356, section 2.3).

        Args:
            decoding: a started batch, which is used up.

        Raises:
            UsageError: the model has no languages.
        """
        speech = speech_tokens_of(self._bundle.manifest.speech, str(self._bundle.folder))
        codes, ids = _languages(speech)
        logits = prompt_logits(decoding, [[speech.start]] * decoding.batch)
        return tuple(codes[index] for index in logits[:, ids].argmax(-1).tolist())

    def _start_tokens(self, options: GenerateOptions) -> tuple[int, ...]:
        default = self._bundle.manifest.generation.start_tokens
        if options.language is None and options.task is None and not options.timestamps:
            return default
        speech = speech_tokens_of(self._bundle.manifest.speech, str(self._bundle.folder))
        return speech.start_tokens(
            default, options.language, options.task, timestamps=options.timestamps
        )

    def _check_token_ids(self, prompt: Sequence[int]) -> None:
        size = self._vocabulary
        for token in prompt:
            if isinstance(size, int) and token >= size:
                raise UsageError(f"the prompt has token {token}, the model's last is {size - 1}")


def detects_language(options: GenerateOptions | None) -> bool:
    """Returns whether the language of each input is to be detected."""
    return options is not None and options.language == AUTO


def _languages(speech: SpeechTokens) -> tuple[list[str], IntArray]:
    return list(speech.languages), np.array(list(speech.languages.values()), np.int64)
